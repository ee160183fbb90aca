package etcd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	bolt "go.etcd.io/bbolt"
	"go.etcd.io/etcd/server/v3/storage/schema"
	"go.etcd.io/etcd/server/v3/storage/wal"
)

// checkLog refuses a directory whose log was lost while its database is there. Of
// such a directory etcd makes a new cluster, whose log begins below what the
// database says it has applied: it would acknowledge writes and drop them. A start
// that was killed before the log was made leaves a database that has applied
// nothing; that is fine.
func checkLog(dir string) error {
	logs := filepath.Join(dir, "member", "wal")
	path := filepath.Join(dir, "member", "snap", "db")
	if wal.Exist(logs) {
		return nil
	}
	if st, err := os.Stat(path); err != nil || st.Size() == 0 {
		return nil
	}
	db, err := bolt.Open(path, 0o600, &bolt.Options{ReadOnly: true, Timeout: time.Second})
	if err != nil {
		return fmt.Errorf("its log %s is lost, and its database cannot be read: %w", logs, err)
	}
	var applied uint64
	err = db.View(func(tx *bolt.Tx) error {
		if b := tx.Bucket(schema.Meta.Name()); b != nil {
			if v := b.Get(schema.MetaConsistentIndexKeyName); len(v) == 8 {
				applied = binary.BigEndian.Uint64(v)
			}
		}
		return nil
	})
	if err := errors.Join(err, db.Close()); err != nil {
		return fmt.Errorf("its log %s is lost, and its database cannot be read: %w", logs, err)
	}
	if applied > 0 {
		return fmt.Errorf("its log %s is lost, its database is not", logs)
	}
	return nil
}
