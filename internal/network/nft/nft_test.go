package nft

import (
	"testing"

	"github.com/google/nftables"
	"go.uber.org/goleak"

	"skiff/internal/network/nettest"
	"skiff/internal/network/ns"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestQueryIsWhole: what was read while somebody changed the rules is read again.
func TestQueryIsWhole(t *testing.T) {
	space, err := ns.Open(nettest.New(t).Path)
	if err != nil {
		t.Fatal(err)
	}
	defer space.Close()
	mine, other := Dial(space), Dial(space)
	defer mine.Close()
	defer other.Close()
	for _, interruptions := range []int{0, 1, 5, mostReads + 1} {
		calls := 0
		var seen []*nftables.Table
		err := mine.Query(func(c *nftables.Conn) error {
			var err error
			if seen, err = c.ListTablesOfFamily(nftables.TableFamilyIPv4); err != nil {
				return err
			}
			if calls++; calls <= interruptions {
				return other.Do(func(txn *Txn) {
					txn.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: "t"})
					txn.ReplaceTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: "t"})
				})
			}
			return nil
		})
		if want := min(interruptions+1, mostReads); err != nil || calls != want {
			t.Errorf("interrupted %d times: read %d times, %v", interruptions, calls, err)
		}
		if there := interruptions > 0; (len(seen) == 1) != there {
			t.Errorf("interrupted %d times: %d tables", interruptions, len(seen))
		}
	}
}
