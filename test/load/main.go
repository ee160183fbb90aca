// Command load sends HTTP requests at a steady rate, each over a connection and
// a name lookup of its own, until it is told to stop, and then prints what became
// of them as JSON. The end-to-end tests run it on the host and in a pod.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"
)

// Result is what is printed.
type Result struct {
	URL      string   `json:"url"`
	Sent     int      `json:"sent"`
	Answered int      `json:"answered"`
	Lookups  int      `json:"failedLookups"`
	Failed   int      `json:"failed"`
	Errors   []string `json:"errors,omitempty"` // the first few
	MaxMS    float64  `json:"maxMilliseconds"`
}

func main() {
	url := flag.String("url", "", "where to send requests")
	rate := flag.Int("rate", 100, "requests a second, at most 1000")
	most := flag.Duration("for", 10*time.Minute, "end by itself after this long")
	timeout := flag.Duration("timeout", 15*time.Second, "of one request, lookup included")
	serve := flag.String("serve", "", "answer requests at this address instead, until told to end; then refuse new ones and finish those begun")
	once := flag.Bool("once", false, "send one request and print the answer")
	udp := flag.Bool("udp", false, "with --serve also answer datagrams there; with --once send one, to the HOST:PORT of --url")
	flag.Parse()
	if *serve != "" {
		if err := server(*serve, *udp); err != nil {
			fmt.Fprintln(os.Stderr, "load:", err)
			os.Exit(1)
		}
		return
	}
	if *url == "" || *rate < 1 || *rate > 1000 {
		fmt.Fprintln(os.Stderr, "load: --url is needed, and --rate from 1 to 1000")
		os.Exit(2)
	}
	if *once {
		ask := one
		if *udp {
			ask = datagram
		}
		body, _, err := ask(*url, *timeout)
		if err != nil {
			fmt.Fprintln(os.Stderr, "load:", err)
			os.Exit(1)
		}
		fmt.Print(body)
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, *most)
	defer cancel()
	fmt.Println("begun")
	r := run(ctx, *url, *rate, *timeout)
	if err := json.NewEncoder(os.Stdout).Encode(r); err != nil {
		os.Exit(1)
	}
}

func run(ctx context.Context, url string, rate int, timeout time.Duration) *Result {
	r := &Result{URL: url}
	var mu sync.Mutex
	var wg sync.WaitGroup
	tick := time.NewTicker(time.Second / time.Duration(rate))
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			wg.Wait()
			return r
		case <-tick.C:
		}
		r.Sent++
		wg.Go(func() {
			_, took, err := one(url, timeout)
			mu.Lock()
			defer mu.Unlock()
			r.MaxMS = max(r.MaxMS, float64(took.Microseconds())/1000)
			if err == nil {
				r.Answered++
				return
			}
			var dns *net.DNSError
			if errors.As(err, &dns) {
				r.Lookups++
			} else {
				r.Failed++
			}
			if len(r.Errors) < 10 {
				r.Errors = append(r.Errors, time.Now().Format("15:04:05.000 ")+err.Error())
			}
		})
	}
}

func one(url string, timeout time.Duration) (body string, took time.Duration, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	t := &http.Transport{DisableKeepAlives: true, DialContext: (&net.Dialer{Resolver: &net.Resolver{PreferGo: true}}).DialContext}
	defer t.CloseIdleConnections()
	begun := time.Now()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", 0, err
	}
	resp, err := t.RoundTrip(req)
	if err != nil {
		return "", time.Since(begun), err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("status %s", resp.Status)
	}
	return string(b), time.Since(begun), err
}

// datagram sends one datagram and returns the one that comes back.
func datagram(to string, timeout time.Duration) (body string, took time.Duration, err error) {
	begun := time.Now()
	d := net.Dialer{Timeout: timeout, Resolver: &net.Resolver{PreferGo: true}}
	c, err := d.Dial("udp", to)
	if err != nil {
		return "", time.Since(begun), err
	}
	defer c.Close()
	_ = c.SetDeadline(begun.Add(timeout))
	if _, err := c.Write([]byte("?")); err != nil {
		return "", time.Since(begun), err
	}
	buf := make([]byte, 1500)
	n, err := c.Read(buf)
	return string(buf[:n]), time.Since(begun), err
}

// server ends as a well-behaved one does: on TERM it closes its socket at once.
func server(addr string, udp bool) error {
	host, err := os.Hostname()
	if err != nil {
		return err
	}
	if udp {
		pc, err := net.ListenPacket("udp", addr)
		if err != nil {
			return err
		}
		go func() {
			buf := make([]byte, 1500)
			for {
				_, from, err := pc.ReadFrom(buf)
				if err != nil {
					return
				}
				_, _ = pc.WriteTo([]byte(os.Getenv("VERSION")+" "+host+"\n"), from)
			}
		}()
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	srv := &http.Server{Addr: addr, ReadHeaderTimeout: 10 * time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = fmt.Fprintln(w, os.Getenv("VERSION"), host)
	})}
	failed := make(chan error, 1)
	go func() { failed <- srv.ListenAndServe() }()
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
		return srv.Shutdown(context.Background())
	}
}
