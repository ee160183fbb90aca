package build

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/term"
)

// Progress hears what a build does. Calls come from one build at a time, Output
// possibly from several goroutines.
type Progress interface {
	// Start begins step n of total (as far as known). Steps do not overlap.
	Start(n, total int, name string)
	// Output is what the step's command writes.
	Output(n int, data []byte)
	// Done ends the step.
	Done(n int, cached bool, err error)
	// Warn tells of something doubtful; line 0 is no line.
	Warn(file string, line int, text string)
}

type silent struct{}

func (silent) Start(int, int, string)   {}
func (silent) Output(int, []byte)       {}
func (silent) Done(int, bool, error)    {}
func (silent) Warn(string, int, string) {}
func (silent) Close() error             { return nil }

// NewProgress writes to w. Mode "tty" keeps a terminal up to date, with the time
// of each step; "plain" writes lines; "rawjson" an object of JSON a line; "quiet"
// nothing; "auto" and "" are tty where w is a terminal, else plain. Close must be
// called after the build.
func NewProgress(w io.Writer, mode string) (ProgressCloser, error) {
	f, ok := w.(*os.File)
	terminal := ok && term.IsTerminal(int(f.Fd()))
	switch mode {
	case "quiet", "none":
		return silent{}, nil
	case "rawjson":
		return &raw{enc: json.NewEncoder(w)}, nil
	case "plain":
		return &plain{w: w, now: time.Now}, nil
	case "auto", "":
		if !terminal {
			return &plain{w: w, now: time.Now}, nil
		}
	case "tty":
		if !terminal {
			return nil, errors.New("progress tty: standard error is not a terminal")
		}
	default:
		return nil, fmt.Errorf("progress %q: must be auto, plain, tty, quiet or rawjson", mode)
	}
	width, _, err := term.GetSize(int(f.Fd()))
	if err != nil || width < 20 {
		width = 80
	}
	return newLive(w, width), nil
}

// raw writes what happens as lines of JSON.
type raw struct {
	mu  sync.Mutex
	enc *json.Encoder
	err error
}

// rawEvent is a line: its fields are those of Progress's methods.
type rawEvent struct {
	Event  string `json:"event"`
	Step   int    `json:"step,omitempty"`
	Total  int    `json:"total,omitempty"`
	Name   string `json:"name,omitempty"`
	Data   []byte `json:"data,omitempty"`
	Cached bool   `json:"cached,omitempty"`
	Error  string `json:"error,omitempty"`
	File   string `json:"file,omitempty"`
	Line   int    `json:"line,omitempty"`
	Text   string `json:"text,omitempty"`
}

func (r *raw) write(e rawEvent) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.enc.Encode(e); err != nil && r.err == nil {
		r.err = err
	}
}

func (r *raw) Start(n, total int, name string) {
	r.write(rawEvent{Event: "start", Step: n, Total: total, Name: name})
}
func (r *raw) Output(n int, data []byte) { r.write(rawEvent{Event: "output", Step: n, Data: data}) }
func (r *raw) Done(n int, cached bool, err error) {
	e := rawEvent{Event: "done", Step: n, Cached: cached}
	if err != nil {
		e.Error = err.Error()
	}
	r.write(e)
}
func (r *raw) Warn(file string, line int, text string) {
	r.write(rawEvent{Event: "warn", File: file, Line: line, Text: text})
}
func (r *raw) Close() error { return r.err }

// ProgressCloser is a Progress that must be closed.
type ProgressCloser interface {
	Progress
	Close() error
}

// plain writes one line for everything.
type plain struct {
	mu    sync.Mutex
	w     io.Writer
	now   func() time.Time
	start time.Time
	part  []byte // of a line
	err   error
}

func (p *plain) printf(format string, args ...any) {
	if _, err := fmt.Fprintf(p.w, format, args...); err != nil && p.err == nil {
		p.err = err
	}
}

func (p *plain) Start(n, total int, name string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.start = p.now()
	p.printf("#%d [%d/%d] %s\n", n, n, total, oneLine(name))
}

func (p *plain) Output(n int, data []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.part = append(p.part, data...)
	for {
		i := bytes.IndexByte(p.part, '\n')
		if i < 0 {
			return
		}
		p.printf("#%d %.3f %s\n", n, p.now().Sub(p.start).Seconds(), clean(p.part[:i]))
		p.part = p.part[i+1:]
	}
}

func (p *plain) Done(n int, cached bool, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.part) > 0 {
		p.printf("#%d %.3f %s\n", n, p.now().Sub(p.start).Seconds(), clean(p.part))
		p.part = nil
	}
	switch {
	case err != nil:
		p.printf("#%d ERROR: %v\n\n", n, err)
	case cached:
		p.printf("#%d CACHED\n\n", n)
	default:
		p.printf("#%d DONE %.1fs\n\n", n, p.now().Sub(p.start).Seconds())
	}
}

func (p *plain) Warn(file string, line int, text string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.printf("WARN: %s%s\n", place(file, line), text)
}

func (p *plain) Close() error { return p.err }

func place(file string, line int) string {
	if line == 0 {
		return file + ": "
	}
	return fmt.Sprintf("%s:%d: ", file, line)
}

// oneLine is an instruction on one line.
func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }

// clean drops what would move a terminal's cursor.
func clean(line []byte) string {
	if i := bytes.LastIndexByte(bytes.TrimRight(line, "\r"), '\r'); i >= 0 {
		line = line[i+1:]
	}
	return strings.Map(func(r rune) rune {
		if r < ' ' && r != '\t' || r == 0x7f {
			return -1
		}
		return r
	}, string(line))
}

// live keeps one line of a terminal up to date: the step that runs, its time,
// and the last that its command wrote. All of it is written when a step fails.
type live struct {
	mu         sync.Mutex
	w          io.Writer
	width      int
	n, total   int
	name, last string
	log        []byte
	start      time.Time
	running    bool
	stop, done chan struct{}
	err        error
}

func newLive(w io.Writer, width int) *live {
	l := &live{w: w, width: width, stop: make(chan struct{}), done: make(chan struct{})}
	go l.tick() // Close waits for it
	return l
}

func (l *live) tick() {
	defer close(l.done)
	t := time.NewTicker(100 * time.Millisecond)
	defer t.Stop()
	for {
		select {
		case <-l.stop:
			return
		case <-t.C:
			l.mu.Lock()
			if l.running {
				l.draw()
			}
			l.mu.Unlock()
		}
	}
}

func (l *live) write(s string) {
	if _, err := io.WriteString(l.w, s); err != nil && l.err == nil {
		l.err = err
	}
}

// line is a step with its time at the right edge.
func (l *live) line(mark, text, right string) string {
	head := fmt.Sprintf("%s [%d/%d] ", mark, l.n, l.total)
	room := l.width - len([]rune(head)) - len(right) - 2
	return head + pad(text, room) + " " + right
}

func pad(s string, width int) string {
	r := []rune(s)
	if width < 1 {
		return ""
	}
	if len(r) > width {
		return string(r[:max(width-1, 0)]) + "…"
	}
	return s + strings.Repeat(" ", width-len(r))
}

// draw replaces the line; mu is held.
func (l *live) draw() {
	text := l.name
	if l.last != "" {
		text += "  | " + l.last
	}
	l.write("\r\x1b[K" + l.line("=>", text, fmt.Sprintf("%.1fs", time.Since(l.start).Seconds())))
}

func (l *live) Start(n, total int, name string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.n, l.total, l.name, l.last, l.log, l.start, l.running = n, total, oneLine(name), "", nil, time.Now(), true
	l.draw()
}

// maxLog is how much of a failed step's output is shown.
const maxLog = 64 << 10

func (l *live) Output(_ int, data []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.log = append(l.log, data...)
	if len(l.log) > 2*maxLog {
		l.log = append([]byte{}, l.log[len(l.log)-maxLog:]...)
	}
	lines := bytes.Split(bytes.TrimRight(data, "\r\n"), []byte("\n"))
	if s := clean(lines[len(lines)-1]); s != "" {
		l.last = s
	}
}

func (l *live) Done(_ int, cached bool, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.running = false
	right := fmt.Sprintf("%.1fs", time.Since(l.start).Seconds())
	mark := "✓ "
	switch {
	case err != nil:
		mark = "✗ "
	case cached:
		right = "CACHED"
	}
	l.write("\r\x1b[K" + l.line(mark, l.name, right) + "\n")
	if err != nil && len(l.log) > 0 {
		log := l.log[max(0, len(l.log)-maxLog):]
		l.write(string(log))
		if log[len(log)-1] != '\n' {
			l.write("\n")
		}
	}
}

func (l *live) Warn(file string, line int, text string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.write("\r\x1b[K! " + place(file, line) + text + "\n")
}

// Close ends the drawing.
func (l *live) Close() error {
	close(l.stop)
	<-l.done
	return l.err
}
