package etcd

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.etcd.io/etcd/server/v3/embed"

	"skiff/internal/store"
)

// The test program, started with one of these in its environment, opens the data
// directory that it names, and writes or just tells what came of it.
const (
	writerEnv = "SKIFF_STORE_TEST_WRITER"
	openerEnv = "SKIFF_STORE_TEST_OPENER"
	faultEnv  = "SKIFF_STORE_TEST_FAULT" // runs TestFault
)

// child does what the environment asks for; false if it asks for nothing.
func child() bool {
	if dir := os.Getenv(writerEnv); dir != "" {
		fmt.Println("err", writer(dir))
		return true
	}
	if dir := os.Getenv(openerEnv); dir != "" {
		s, err := Open(context.Background(), Config{Dir: dir, StartTimeout: 15 * time.Second})
		if err == nil {
			err = s.Close()
		}
		fmt.Println(err)
		return true
	}
	return false
}

// writer writes until it is killed and prints each write once it is
// acknowledged, and before that what it is about to write.
func writer(dir string) error {
	s, err := Open(context.Background(), Config{Dir: dir})
	if err != nil {
		return err
	}
	ctx := context.Background()
	var mu sync.Mutex
	say := func(format string, args ...any) {
		mu.Lock()
		defer mu.Unlock()
		fmt.Printf(format+"\n", args...)
	}
	rev, err := s.Revision(ctx)
	if err != nil {
		return err
	}
	say("open %d", rev)
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			key, last := fmt.Sprintf("/registry/w%d", w), int64(0)
			if kv, err := s.Get(ctx, key, 0); err == nil {
				last = kv.ModRev
			}
			for i := 0; ; i++ {
				val := fmt.Sprintf("%d-%d-%d", rev, w, i)
				var err error
				if last == 0 {
					last, err = s.Create(ctx, key, []byte(val), store.WriteOptions{})
				} else {
					last, err = s.Update(ctx, key, []byte(val), last, store.WriteOptions{})
				}
				if err == nil {
					say("ack %s %s %d", key, val, last)
				}
				own := fmt.Sprintf("/registry/made/%d-%d-%d", rev, w, i)
				made, cerr := s.Create(ctx, own, []byte(val), store.WriteOptions{})
				if cerr == nil {
					say("ack %s %s %d", own, val, made)
				}
				if err = errors.Join(err, cerr); err != nil {
					say("err %v", err)
					return
				}
			}
		})
	}
	wg.Wait()
	return errors.New("a write failed")
}

// TestKill9 kills a writing process at random moments, and then looks whether all
// that it was told is written is there.
func TestKill9(t *testing.T) {
	dir := t.TempDir()
	type ack struct {
		value string
		rev   int64
	}
	acked := map[string]ack{}
	total := 0
	for round := range 8 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), writerEnv+"="+dir)
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		kill := sync.OnceFunc(func() { _ = cmd.Process.Kill() })
		lines := bufio.NewReader(out)
		count := 0
		// Some rounds die in the middle of the start: the delay counts from the
		// program's start there, and from the first write in the others.
		var timer *time.Timer
		if round%4 == 3 {
			timer = time.AfterFunc(time.Duration(5+rand.IntN(40))*time.Millisecond, kill)
		}
		giveUp := time.AfterFunc(time.Minute, kill)
		var highest int64
		for {
			line, err := lines.ReadString('\n')
			if err != nil {
				if err != io.EOF {
					t.Fatal(err)
				}
				break // a last line without an end was cut off
			}
			f := strings.Fields(line)
			switch {
			case len(f) == 2 && f[0] == "open":
				var rev int64
				fmt.Sscan(f[1], &rev)
				for k, a := range acked {
					if a.rev > rev {
						t.Errorf("store opened at %d after %s was acknowledged at %d", rev, k, a.rev)
					}
				}
			case len(f) == 4 && f[0] == "ack":
				var rev int64
				fmt.Sscan(f[3], &rev)
				acked[f[1]] = ack{f[2], rev}
				highest = max(highest, rev)
				if count++; timer == nil {
					timer = time.AfterFunc(time.Duration(20+rand.IntN(400))*time.Millisecond, kill)
				}
			case len(f) > 0 && f[0] == "err":
				t.Errorf("writer: %s", line)
			}
		}
		kill()
		giveUp.Stop()
		_ = cmd.Wait()
		total += count

		if round%4 == 3 || round == 7 {
			continue // the next process finds what two kills have left
		}
		s, err := Open(t.Context(), Config{Dir: dir})
		if err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		for key, a := range acked {
			kv, err := s.Get(t.Context(), key, 0)
			if err != nil {
				t.Errorf("round %d: acknowledged %s: %v", round, key, err)
			} else if kv.ModRev == a.rev && string(kv.Value) != a.value || kv.ModRev < a.rev {
				t.Errorf("round %d: %s is %q at %d, acknowledged %q at %d", round, key, kv.Value, kv.ModRev, a.value, a.rev)
			}
			if t.Failed() {
				break
			}
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
	if total < 100 {
		t.Fatalf("only %d writes were acknowledged", total)
	}
	s := open(t, Config{Dir: dir})
	for key, a := range acked {
		if kv, err := s.Get(t.Context(), key, 0); err != nil || kv.ModRev < a.rev {
			t.Fatalf("in the end: acknowledged %s: %+v, %v", key, kv, err)
		}
	}
	t.Logf("%d acknowledged writes", total)
}

// TestKeepsAcrossClose: revisions, history and compaction outlive the process.
func TestKeepsAcrossClose(t *testing.T) {
	dir, ctx := t.TempDir(), t.Context()
	s := open(t, Config{Dir: dir})
	r1, err := s.Create(ctx, "/registry/a", []byte("1"), store.WriteOptions{})
	if err != nil {
		t.Fatal(err)
	}
	rev := r1
	// More than one snapshot's worth.
	for i := range 2500 {
		if rev, err = s.Update(ctx, "/registry/a", fmt.Append(nil, i), rev, store.WriteOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Compact(ctx, rev-10); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, Config{Dir: dir})
	if got, err := s.Revision(ctx); err != nil || got != rev {
		t.Fatalf("revision is %d, %v; want %d", got, err, rev)
	}
	if c, err := s.Compacted(ctx); err != nil || c != rev-10 {
		t.Fatalf("compacted is %d, %v; want %d", c, err, rev-10)
	}
	kv, err := s.Get(ctx, "/registry/a", rev-5)
	if err != nil || string(kv.Value) != "2494" || kv.CreateRev != r1 {
		t.Fatalf("got %+v, %v", kv, err)
	}
	w, err := s.Watch(ctx, "/registry/", rev-10)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for n < 10 {
		select {
		case b := <-w.Batches():
			n += len(b.Events)
		case <-time.After(30 * time.Second):
			t.Fatalf("%d of 10 changes came", n)
		}
	}
}

// TestTTLAcrossRestart: a key's time goes on after a restart, from its beginning
// at the latest.
func TestTTLAcrossRestart(t *testing.T) {
	dir, ctx := t.TempDir(), t.Context()
	s := open(t, Config{Dir: dir})
	if _, err := s.Create(ctx, "/registry/short", []byte("v"), store.WriteOptions{TTL: 2 * time.Second}); err != nil {
		t.Fatal(err)
	}
	kept, err := s.Create(ctx, "/registry/kept", []byte("v"), store.WriteOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, Config{Dir: dir})
	if _, err := s.Get(ctx, "/registry/short", 0); err != nil {
		t.Fatalf("right after the restart: %v", err)
	}
	w, err := s.Watch(ctx, "/registry/", kept)
	if err != nil {
		t.Fatal(err)
	}
	select {
	case b := <-w.Batches():
		if len(b.Events) != 1 || b.Events[0].Type != store.Delete || b.Events[0].KV.Key != "/registry/short" {
			t.Fatalf("got %+v", b)
		}
	case <-time.After(30 * time.Second):
		t.Fatal("the key stays")
	}
}

func TestSecondProcess(t *testing.T) {
	dir := t.TempDir()
	open(t, Config{Dir: dir})
	_, err := Open(t.Context(), Config{Dir: dir})
	if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("is in use by process %d", os.Getpid())) {
		t.Fatalf("got error %v", err)
	}
}

// TestOtherEtcd: an etcd of another program on the same directory is told, where
// etcd itself would wait without an end.
func TestOtherEtcd(t *testing.T) {
	var dir string
	_, stop := serve(t, "unix://"+t.TempDir()+"/client", func(c *embed.Config) { dir = c.Dir })
	_, err := Open(t.Context(), Config{Dir: dir})
	if err == nil || !strings.Contains(err.Error(), "is in use by another etcd") {
		t.Fatalf("got error %v", err)
	}
	// Once that has ended, its data is the store's.
	stop()
	s := open(t, Config{Dir: dir})
	if _, err := s.Create(t.Context(), "/registry/a", []byte("v"), store.WriteOptions{}); err != nil {
		t.Fatal(err)
	}
}

// TestBadDirectory: each gets one error that names the directory, in little time.
func TestBadDirectory(t *testing.T) {
	good := func(t *testing.T, writes int) string {
		dir := t.TempDir()
		s, err := Open(t.Context(), Config{Dir: dir})
		if err != nil {
			t.Fatal(err)
		}
		ops := make([]store.Op, writes)
		for i := range ops {
			ops[i] = store.Op{Key: fmt.Sprintf("/registry/%d", i), Value: []byte(strings.Repeat("value ", 200))}
		}
		if _, err := s.Batch(t.Context(), ops); err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	damage := func(t *testing.T, pattern string, f func([]byte) []byte) string {
		dir := good(t, 10)
		names, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil || len(names) == 0 {
			t.Fatalf("%s: %v", pattern, err)
		}
		b, err := os.ReadFile(names[0])
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(names[0], f(b), 0o600); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	tests := []struct {
		name string
		dir  func(t *testing.T) string
		want string
	}{
		{"foreign", func(t *testing.T) string {
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, "letters.txt"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
			return dir
		}, `is not a store's: it holds "letters.txt"`},
		{"a file", func(t *testing.T) string {
			file := filepath.Join(t.TempDir(), "file")
			if err := os.WriteFile(file, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			return file
		}, "cannot be made"},
		{"database of text", func(t *testing.T) string {
			return damage(t, "member/snap/db", func(b []byte) []byte { return []byte("this is no database") })
		}, "cannot be opened"},
		{"database of zeros", func(t *testing.T) string {
			return damage(t, "member/snap/db", func(b []byte) []byte { clear(b); return b })
		}, "cannot be opened"},
		{"database cut off", func(t *testing.T) string {
			return damage(t, "member/snap/db", func(b []byte) []byte { return b[:5000] })
		}, "cannot be opened"},
		{"database lost", func(t *testing.T) string {
			// With fewer, all of it is in the log still, and nothing is lost.
			dir := good(t, 2*snapshotCount)
			if err := os.Remove(filepath.Join(dir, "member/snap/db")); err != nil {
				t.Fatal(err)
			}
			return dir
		}, "cannot be opened"},
		{"log lost", func(t *testing.T) string {
			dir := good(t, 10)
			if err := os.RemoveAll(filepath.Join(dir, "member/wal")); err != nil {
				t.Fatal(err)
			}
			return dir
		}, "its log "},
		{"log of text", func(t *testing.T) string {
			return damage(t, "member/wal/0000000000000000-0000000000000000.wal", func([]byte) []byte { return []byte(strings.Repeat("no log ", 1000)) })
		}, "cannot be opened"},
		{"log with a changed byte", func(t *testing.T) string {
			return damage(t, "member/wal/0000000000000000-0000000000000000.wal", func(b []byte) []byte {
				b[4000] ^= 0xff
				return b
			})
		}, "cannot be opened"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := tt.dir(t)
			// In a process of its own: parts of etcd stay behind in one whose
			// start failed.
			cmd := exec.Command(os.Args[0])
			cmd.Env = append(os.Environ(), openerEnv+"="+dir)
			begin := time.Now()
			b, err := cmd.Output()
			if err != nil {
				t.Fatalf("the process ended with %v: %s", err, b)
			}
			got := strings.TrimSuffix(string(b), "\n")
			if !strings.Contains(got, tt.want) || !strings.Contains(got, dir) || strings.Contains(got, "\n") {
				t.Fatalf("got %q, want %q in one line with the directory", got, tt.want)
			}
			if took := time.Since(begin); took > 10*time.Second {
				t.Fatalf("it took %s", took)
			}
			t.Log(got)
		})
	}
}

// TestStartWithBacklog: a start with much of the log to go through again. An
// election that comes too early meets entries that are no longer there.
func TestStartWithBacklog(t *testing.T) {
	dir := t.TempDir()
	s := open(t, Config{Dir: dir})
	ops := make([]store.Op, snapshotCount-100)
	for i := range ops {
		ops[i] = store.Op{Key: fmt.Sprintf("/registry/%d", i), Value: []byte("v")}
	}
	if _, err := s.Batch(t.Context(), ops); err != nil {
		t.Fatal(err)
	}
	want, err := s.Revision(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	for i := range 40 {
		s, err := Open(t.Context(), Config{Dir: dir})
		if err != nil {
			t.Fatalf("start %d: %v", i, err)
		}
		got, err := s.Revision(t.Context())
		if err != nil || got != want {
			t.Errorf("start %d: revision %d, %v; want %d", i, got, err, want)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestFaultInChild runs TestFault in a process of its own.
func TestFaultInChild(t *testing.T) {
	cmd := exec.Command(os.Args[0], "-test.run=^TestFault$", "-test.v")
	cmd.Env = append(os.Environ(), faultEnv+"=1")
	if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "--- PASS: TestFault") {
		t.Fatalf("%v\n%s", err, out)
	}
}
