package cli

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
	"golang.org/x/term"

	"skiff/internal/admin"
)

// layers shows how far the layers of a transfer are.
type layers interface {
	note(admin.LayerEvent)
	// close leaves the terminal as it was found.
	close()
}

// newLayers shows nothing where quiet, a line for each layer that stays in its
// place where w is a terminal, and otherwise a line for each stage of each layer.
func newLayers(w io.Writer, quiet bool) layers {
	if quiet {
		return noLayers{}
	}
	if f, ok := w.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		return &layerBars{progress: mpb.New(mpb.WithOutput(w)), bars: map[string]*layerBar{}}
	}
	return &layerLines{w: w, stage: map[string]string{}}
}

type noLayers struct{}

func (noLayers) note(admin.LayerEvent) {}
func (noLayers) close()                {}

// layerLines writes what changes, as docker does into a file.
type layerLines struct {
	w     io.Writer
	stage map[string]string
}

func (l *layerLines) note(e admin.LayerEvent) {
	if s := stageOf(e); l.stage[e.Digest] != s {
		l.stage[e.Digest] = s
		fmt.Fprintf(l.w, "%s: %s\n", shortID(e.Digest), s)
	}
}

func (l *layerLines) close() {}

func stageOf(e admin.LayerEvent) string {
	if e.From != "" {
		return e.Stage + " " + e.From
	}
	return e.Stage
}

// layerBars has a line of the terminal for each layer.
type layerBars struct {
	progress *mpb.Progress
	mu       sync.Mutex
	bars     map[string]*layerBar
}

type layerBar struct {
	bar   *mpb.Bar
	event atomic.Pointer[admin.LayerEvent]
}

func (l *layerBars) note(e admin.LayerEvent) {
	l.mu.Lock()
	defer l.mu.Unlock()
	b := l.bars[e.Digest]
	if b == nil {
		b = &layerBar{}
		b.event.Store(&e)
		bar, err := l.progress.Add(1, mpb.BarFillerFunc(b.fill), mpb.PrependDecorators(decor.Name(shortID(e.Digest)+": ")))
		if err != nil {
			return // the display has ended
		}
		b.bar = bar
		l.bars[e.Digest] = b
	}
	b.event.Store(&e)
	if e.Ends {
		b.bar.Increment()
	}
}

// fill draws a layer's line.
func (b *layerBar) fill(w io.Writer, stat decor.Statistics) error {
	_, err := io.WriteString(w, layerLine(*b.event.Load(), stat.AvailableWidth))
	return err
}

// layerLine is how far a layer is in so many columns.
func layerLine(e admin.LayerEvent, width int) string {
	text := stageOf(e)
	if e.Total > 0 && !e.Ends {
		counts := fmt.Sprintf(" %s/%s", size(e.Done), size(e.Total))
		const widest = 50
		if room := min(width-len(text)-len(counts)-3, widest); room >= 10 {
			full := int(int64(room) * min(e.Done, e.Total) / e.Total)
			bar := strings.Repeat("=", full)
			if full < room {
				bar += ">" + strings.Repeat(" ", room-full-1)
			}
			text += " [" + bar + "]"
		}
		text += counts
	}
	if len(text) > width {
		text = text[:max(width, 0)]
	}
	return text
}

func (l *layerBars) close() {
	l.mu.Lock()
	for _, b := range l.bars {
		b.bar.Abort(false) // does nothing to one that is complete
	}
	l.mu.Unlock()
	l.progress.Wait()
}
