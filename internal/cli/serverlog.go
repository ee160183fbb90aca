package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"time"
)

// ownLog prints the log of skiff itself, or the last lines of it, and follows it
// until ctx ends.
func (c *command) ownLog(ctx context.Context, follow bool, tail string) error {
	_, i, known, err := c.find()
	if err != nil {
		return err
	}
	if !known {
		return errors.New(c.local.Unknown(i))
	}
	f, err := os.Open(i.Run("skiff.log"))
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("skiff %q keeps no log here: it ran in the foreground, or not since this machine started", i.Name)
	}
	if err != nil {
		return err
	}
	defer f.Close()
	var b []byte
	if b, err = io.ReadAll(f); err != nil {
		return err
	}
	if n, err := strconv.Atoi(tail); err == nil {
		b = lastLines(b, n)
	}
	if _, err := c.out.Write(b); err != nil || !follow {
		return err
	}
	t := time.NewTicker(again)
	defer t.Stop()
	for {
		if _, err := io.Copy(c.out, f); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
	}
}

func lastLines(b []byte, n int) []byte {
	at := len(bytes.TrimSuffix(b, []byte("\n")))
	for ; n > 0 && at > 0; n-- {
		at = bytes.LastIndexByte(b[:at], '\n')
	}
	if n > 0 || at < 0 {
		return b
	}
	return b[min(at+1, len(b)):]
}
