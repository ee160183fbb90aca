package host

import "path/filepath"

// LogFile is the log, in the run directory, of a skiff in the background; what it
// held before it grew too long is in a file of that name with OldLog at its end.
const (
	LogFile = "skiff.log"
	OldLog  = ".1"
)

// Unit is the name of the systemd unit that runs i as a service.
func (i Instance) Unit() string {
	if i.Name == DefaultName {
		return "skiff.service"
	}
	return "skiff-" + i.Name + ".service"
}

// UnitPath is the file of i's unit on the system whose root directory is root.
func UnitPath(root string, i Instance) string {
	return filepath.Join(root, "etc/systemd/system", i.Unit())
}

// ConfigPath is the config file that i's unit starts it with, on the system whose
// root directory is root.
func ConfigPath(root string, i Instance) string {
	return filepath.Join(root, "etc/skiff", i.Name+".yaml")
}
