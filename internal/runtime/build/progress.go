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

// Progress hears what a build does. Calls come from one build at a time, and from
// several of its goroutines.
type Progress interface {
	// Start begins step n of total (as far as known). Steps of several stages overlap.
	Start(n, total int, name string)
	// Output is what the step's command writes.
	Output(n int, data []byte)
	// Done ends the step; err is ErrCanceled where it was given up.
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
		return newPlain(w, time.Now), nil
	case "auto", "":
		if !terminal {
			return newPlain(w, time.Now), nil
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
	steps map[int]*plainStep // that run
	err   error
}

type plainStep struct {
	start time.Time
	part  []byte // of a line
}

func newPlain(w io.Writer, now func() time.Time) *plain {
	return &plain{w: w, now: now, steps: map[int]*plainStep{}}
}

// since is a step's time in seconds.
func (p *plain) since(s *plainStep) float64 { return p.now().Sub(s.start).Seconds() }

// of is a step; what was not begun begins now.
func (p *plain) of(n int) *plainStep {
	if p.steps[n] == nil {
		p.steps[n] = &plainStep{start: p.now()}
	}
	return p.steps[n]
}

func (p *plain) printf(format string, args ...any) {
	if _, err := fmt.Fprintf(p.w, format, args...); err != nil && p.err == nil {
		p.err = err
	}
}

func (p *plain) Start(n, total int, name string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.of(n)
	p.printf("#%d [%d/%d] %s\n", n, n, total, oneLine(name))
}

func (p *plain) Output(n int, data []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.of(n)
	s.part = append(s.part, data...)
	for {
		i := bytes.IndexByte(s.part, '\n')
		if i < 0 {
			return
		}
		p.printf("#%d %.3f %s\n", n, p.since(s), clean(s.part[:i]))
		s.part = s.part[i+1:]
	}
}

func (p *plain) Done(n int, cached bool, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.of(n)
	delete(p.steps, n)
	if len(s.part) > 0 {
		p.printf("#%d %.3f %s\n", n, p.since(s), clean(s.part))
	}
	switch {
	case canceled(err):
		p.printf("#%d CANCELED\n\n", n)
	case err != nil:
		p.printf("#%d ERROR: %v\n\n", n, err)
	case cached:
		p.printf("#%d CACHED\n\n", n)
	default:
		p.printf("#%d DONE %.1fs\n\n", n, p.since(s))
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

// canceled tells of an error, which may have come as text, that it is ErrCanceled.
func canceled(err error) bool { return err != nil && err.Error() == ErrCanceled.Error() }

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

// live keeps one line of a terminal up to date: of the steps that run, the one that
// wrote last, its time, and the last that its command wrote; and how many others run.
// All of a step's output is written when it fails.
type live struct {
	mu         sync.Mutex
	w          io.Writer
	width      int
	total      int
	steps      map[int]*liveStep // that run
	shown      int               // the one that has the line
	stop, done chan struct{}
	err        error
}

type liveStep struct {
	n          int
	name, last string
	log        []byte
	start      time.Time
}

func newLive(w io.Writer, width int) *live {
	l := &live{w: w, width: width, steps: map[int]*liveStep{}, stop: make(chan struct{}), done: make(chan struct{})}
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
			l.draw()
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
func (l *live) line(s *liveStep, mark, text, right string) string {
	head := fmt.Sprintf("%s [%d/%d] ", mark, s.n, l.total)
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
	s := l.steps[l.shown]
	if s == nil { // its time is over: the oldest of the others
		for n, o := range l.steps {
			if s == nil || n < s.n {
				s = o
			}
		}
	}
	if s == nil {
		return
	}
	l.shown = s.n
	text, right := s.name, fmt.Sprintf("%.1fs", time.Since(s.start).Seconds())
	if s.last != "" {
		text += "  | " + s.last
	}
	if more := len(l.steps) - 1; more > 0 {
		right = fmt.Sprintf("+%d  %s", more, right)
	}
	l.write("\r\x1b[K" + l.line(s, "=>", text, right))
}

func (l *live) Start(n, total int, name string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.steps[n] = &liveStep{n: n, name: oneLine(name), start: time.Now()}
	l.total, l.shown = total, n
	l.draw()
}

// maxLog is how much of a failed step's output is shown.
const maxLog = 64 << 10

func (l *live) Output(n int, data []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.steps[n]
	if s == nil {
		return
	}
	s.log = append(s.log, data...)
	if len(s.log) > 2*maxLog {
		s.log = append([]byte{}, s.log[len(s.log)-maxLog:]...)
	}
	lines := bytes.Split(bytes.TrimRight(data, "\r\n"), []byte("\n"))
	if text := clean(lines[len(lines)-1]); text != "" {
		s.last, l.shown = text, n
	}
}

func (l *live) Done(n int, cached bool, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.steps[n]
	if s == nil {
		return
	}
	delete(l.steps, n)
	right := fmt.Sprintf("%.1fs", time.Since(s.start).Seconds())
	mark := "✓ "
	switch {
	case canceled(err):
		mark, right = "✗ ", "CANCELED"
	case err != nil:
		mark = "✗ "
	case cached:
		right = "CACHED"
	}
	l.write("\r\x1b[K" + l.line(s, mark, s.name, right) + "\n")
	if err != nil && !canceled(err) && len(s.log) > 0 {
		log := s.log[max(0, len(s.log)-maxLog):]
		l.write(string(log))
		if log[len(log)-1] != '\n' {
			l.write("\n")
		}
	}
	l.draw()
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
