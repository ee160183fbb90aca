package explain

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"skiff/internal/api/explanation"
)

// Style says how text is written.
type Style struct {
	// Color is for terminals.
	Color bool
	// Width is where lines are broken, 0 for nowhere.
	Width int
}

// Text writes an explanation for a person.
func Text(to io.Writer, e *explanation.Explanation, s Style) error {
	p := &printer{to: to, s: s}
	p.all(e, "")
	return p.err
}

type printer struct {
	to  io.Writer
	s   Style
	err error
}

func (p *printer) line(text string) {
	if p.err == nil {
		_, p.err = io.WriteString(p.to, strings.TrimRight(text, " ")+"\n")
	}
}

// Colours of a terminal.
const (
	red, yellow, green, bold = "31", "33", "32", "1"
)

func (p *printer) paint(color, text string) string {
	if !p.s.Color {
		return text
	}
	return "\x1b[" + color + "m" + text + "\x1b[0m"
}

// item writes text after a mark, broken so that it stays right of the mark.
func (p *printer) item(indent, mark, text, color string) {
	pad := strings.Repeat(" ", len(indent)+len(mark))
	room := p.s.Width - len(pad)
	shown := mark
	if color != "" {
		shown = p.paint(color, mark)
	}
	lead := indent + shown
	for _, part := range broken(text, room) {
		p.line(lead + part)
		lead = pad
	}
}

// broken breaks text at spaces so that no line is longer than width, where that can be.
func broken(text string, width int) []string {
	var out []string
	for _, line := range strings.Split(text, "\n") {
		for width >= 20 && len(line) > width {
			at := strings.LastIndexByte(line[:width+1], ' ')
			if at <= 0 {
				if at = strings.IndexByte(line, ' '); at < 0 {
					break
				}
			}
			out = append(out, line[:at])
			line = line[at+1:]
		}
		out = append(out, line)
	}
	return out
}

func (p *printer) all(e *explanation.Explanation, indent string) {
	colors := map[explanation.State]string{explanation.Fine: green, explanation.Waiting: yellow, explanation.Failing: red, explanation.Ending: yellow}
	p.item(indent, "", p.paint(bold, name(e.Regarding))+": "+p.paint(colors[e.State], e.Summary)+".", "")
	if len(e.Causes) > 0 {
		p.line("")
	}
	marks := make([]string, len(e.Causes))
	wide := 0
	for i, c := range e.Causes {
		if marks[i] = on(c); len(marks[i]) > wide {
			wide = len(marks[i])
		}
	}
	for i, c := range e.Causes {
		mark := "  "
		if wide > 0 {
			mark += marks[i] + strings.Repeat(" ", wide-len(marks[i])+2)
		}
		p.item(indent, mark, c.Message, "")
	}
	p.remedies(e, indent)
	// Where a remedy says what it evicts, that is the same again.
	if e.Preemption != nil && e.Preemption.Message != "" && !slices.ContainsFunc(e.Remedies, func(r explanation.Remedy) bool { return len(r.Evicts) > 0 }) {
		p.line("")
		p.item(indent, "Preemption: ", e.Preemption.Message+".", "")
	}
	if len(e.Notes) > 0 {
		p.line("")
	}
	for _, n := range e.Notes {
		p.item(indent, "Note: ", n, "")
	}
	for i := range e.Because {
		p.line("")
		p.all(&e.Because[i], indent)
	}
}

// on says on which nodes a cause is found.
func on(c explanation.Cause) string {
	if len(c.Nodes) == 0 {
		return ""
	}
	if len(c.Nodes) > 3 {
		return fmt.Sprintf("%d nodes", len(c.Nodes))
	}
	return strings.Join(c.Nodes, ", ")
}

func (p *printer) remedies(e *explanation.Explanation, indent string) {
	if len(e.Remedies) == 0 {
		return
	}
	var proven, advice []explanation.Remedy
	for _, r := range e.Remedies {
		if r.Proven {
			proven = append(proven, r)
		} else {
			advice = append(advice, r)
		}
	}
	if len(proven) > 0 {
		p.line("")
		head := "This lets it run"
		if e.Regarding.Kind == "PersistentVolumeClaim" {
			head = "This lets it be bound"
		}
		if len(proven) > 1 {
			head = strings.Replace(head, "This lets", "Each of these lets", 1)
		}
		p.line(indent + head + madeIn(proven, e.Regarding) + ":")
	}
	for _, r := range proven {
		p.remedy(indent, r)
	}
	if len(advice) > 0 {
		p.line("")
		p.line(indent + "What would help:")
	}
	for _, r := range advice {
		p.remedy(indent, r)
	}
}

func (p *printer) remedy(indent string, r explanation.Remedy) {
	var texts, commands []string
	for _, c := range r.Changes {
		texts = append(texts, c.Message)
		if c.Command != "" {
			commands = append(commands, c.Command)
		}
	}
	text := strings.Join(texts, ", and ")
	if len(r.Evicts) > 0 {
		text += fmt.Sprintf(", which evicts %s%s", tally(r.Evicts), breaks(r.Breaks))
	}
	if r.Node != "" {
		text += " -> " + r.Node
	}
	p.item(indent, "  * ", text, "")
	for _, c := range commands {
		// A command is one line, to be copied.
		p.line(indent + "      " + p.paint(bold, c))
	}
}

// madeIn says where the changes of a spec are to be made, if that is not the object.
func madeIn(rs []explanation.Remedy, self explanation.Reference) string {
	for _, r := range rs {
		for _, c := range r.Changes {
			if t := c.Target; len(c.Patch) > 0 && t != nil && (t.Kind != self.Kind || t.Name != self.Name) {
				return fmt.Sprintf(" (its spec is made from %s/%s)", strings.ToLower(t.Kind), t.Name)
			}
		}
	}
	return ""
}

func name(r explanation.Reference) string {
	out := strings.ToLower(r.Kind) + "/" + r.Name
	if r.Namespace != "" {
		out += " in " + r.Namespace
	}
	return out
}

// Overviewed writes a line for each explanation, the states in a column.
func Overviewed(to io.Writer, list []explanation.Explanation, spaces bool, s Style) error {
	p := &printer{to: to, s: s}
	wide := 0
	names := make([]string, len(list))
	for i := range list {
		r := list[i].Regarding
		names[i] = strings.ToLower(r.Kind) + "/" + r.Name
		if spaces && r.Namespace != "" {
			names[i] = r.Namespace + " " + names[i]
		}
		wide = max(wide, len(names[i]))
	}
	for i := range list {
		p.item("", names[i]+strings.Repeat(" ", wide-len(names[i])+2), list[i].Summary, "")
	}
	return p.err
}
