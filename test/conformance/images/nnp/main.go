// nnp says whose rights it has: with the setuid bit, and unless it was started
// with no_new_privs, its file's owner's.
package main

import (
	"fmt"
	"os"
)

func main() { fmt.Printf("Effective uid: %d\n", os.Geteuid()) }
