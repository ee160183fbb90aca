package nft

import (
	"encoding/binary"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Family is what differs between IPv4 and IPv6 in rules.
type Family struct {
	Table    nftables.TableFamily
	NFProto  uint32
	AddrType nftables.SetDatatype
	AddrLen  uint32
	// Words is AddrLen in registers of 32 bits.
	Words  int
	srcOff uint32
	dstOff uint32
}

// IPv4 and IPv6 are the two families.
var (
	IPv4 = Family{nftables.TableFamilyIPv4, unix.NFPROTO_IPV4, nftables.TypeIPAddr, 4, 1, 12, 16}
	IPv6 = Family{nftables.TableFamilyIPv6, unix.NFPROTO_IPV6, nftables.TypeIP6Addr, 16, 4, 8, 24}
)

// Has tells whether an address is of the family.
func (f Family) Has(a netip.Addr) bool { return a.IsValid() && a.BitLen() == int(f.AddrLen)*8 }

// Only returns the prefixes of the family.
func (f Family) Only(in []netip.Prefix) []netip.Prefix {
	var out []netip.Prefix
	for _, p := range in {
		if f.Has(p.Addr()) {
			out = append(out, p.Masked())
		}
	}
	return out
}

// Name is the family's name in nft's syntax.
func (f Family) Name() string {
	if f.AddrLen == 4 {
		return "ip"
	}
	return "ip6"
}

// Any is the unspecified address.
func (f Family) Any() netip.Addr {
	if f.AddrLen == 4 {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}

// Rule is a sequence of expressions. Registers are numbered from 0, 32 bits
// each, 16 in all; a concatenation is keyed by consecutive registers.
type Rule []expr.Any

func reg(i int) uint32 { return unix.NFT_REG32_00 + uint32(i) }

// SAddr loads the source address.
func (r Rule) SAddr(f Family, at int) Rule {
	return append(r, &expr.Payload{Base: expr.PayloadBaseNetworkHeader, Offset: f.srcOff, Len: f.AddrLen, DestRegister: reg(at)})
}

// DAddr loads the destination address.
func (r Rule) DAddr(f Family, at int) Rule {
	return append(r, &expr.Payload{Base: expr.PayloadBaseNetworkHeader, Offset: f.dstOff, Len: f.AddrLen, DestRegister: reg(at)})
}

// IfName loads the name of the link that the packet came by.
func (r Rule) IfName(at int) Rule {
	return append(r, &expr.Meta{Key: expr.MetaKeyIIFNAME, Register: reg(at)})
}

// L4Proto loads the transport protocol.
func (r Rule) L4Proto(at int) Rule {
	return append(r, &expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg(at)})
}

// DPort loads the destination port.
func (r Rule) DPort(at int) Rule {
	return append(r, &expr.Payload{Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2, DestRegister: reg(at)})
}

// Imm loads constant bytes.
func (r Rule) Imm(at int, data []byte) Rule {
	return append(r, &expr.Immediate{Register: reg(at), Data: data})
}

// Random loads a random number of [offset, offset+n).
func (r Rule) Random(at int, n, offset uint32) Rule {
	return append(r, &expr.Numgen{Register: reg(at), Modulus: n, Offset: offset, Type: unix.NFT_NG_RANDOM})
}

// In goes on where the registers from at are in the set.
func (r Rule) In(s *nftables.Set, at int) Rule {
	return append(r, &expr.Lookup{SourceRegister: reg(at), SetName: s.Name, SetID: s.ID})
}

// NotIn goes on where the registers from at are not in the set.
func (r Rule) NotIn(s *nftables.Set, at int) Rule {
	return append(r, &expr.Lookup{SourceRegister: reg(at), SetName: s.Name, SetID: s.ID, Invert: true})
}

// Map goes on where the registers from at are in the map, and loads the value.
func (r Rule) Map(m *nftables.Set, at, to int) Rule {
	return append(r, &expr.Lookup{SourceRegister: reg(at), SetName: m.Name, SetID: m.ID, DestRegister: reg(to), IsDestRegSet: true})
}

// VMap follows the verdict of the map for the registers from at.
func (r Rule) VMap(m *nftables.Set, at int) Rule {
	return append(r, &expr.Lookup{SourceRegister: reg(at), SetName: m.Name, SetID: m.ID, DestRegister: unix.NFT_REG_VERDICT, IsDestRegSet: true})
}

// Dynset operations.
const (
	OpAdd    = unix.NFT_DYNSET_OP_ADD
	OpUpdate = unix.NFT_DYNSET_OP_UPDATE
	OpDelete = 2
)

// Store changes a dynamic map from the packet path: key from the registers at,
// value from those at data (the kernel wants one for a deletion as well).
func (r Rule) Store(m *nftables.Set, op uint32, at, data int) Rule {
	d := &expr.Dynset{SrcRegKey: reg(at), SrcRegData: reg(data), SetName: m.Name, SetID: m.ID, Operation: op}
	if op != OpDelete {
		d.Timeout = m.Timeout
	}
	return append(r, d)
}

// Eq goes on where the register equals data.
func (r Rule) Eq(at int, data []byte) Rule {
	return append(r, &expr.Cmp{Op: expr.CmpOpEq, Register: reg(at), Data: data})
}

// Neq goes on where the register differs from data.
func (r Rule) Neq(at int, data []byte) Rule {
	return append(r, &expr.Cmp{Op: expr.CmpOpNeq, Register: reg(at), Data: data})
}

// InPrefix goes on where the address in the registers from at is in p.
func (r Rule) InPrefix(f Family, at int, p netip.Prefix) Rule {
	return r.prefix(f, at, p, expr.CmpOpEq)
}

// NotInPrefix goes on where the address in the registers from at is not in p.
func (r Rule) NotInPrefix(f Family, at int, p netip.Prefix) Rule {
	return r.prefix(f, at, p, expr.CmpOpNeq)
}

func (r Rule) prefix(f Family, at int, p netip.Prefix, op expr.CmpOp) Rule {
	mask := make([]byte, f.AddrLen)
	for i := range p.Bits() {
		mask[i/8] |= 0x80 >> (i % 8)
	}
	return append(r,
		&expr.Bitwise{SourceRegister: reg(at), DestRegister: reg(at), Len: f.AddrLen, Mask: mask, Xor: make([]byte, f.AddrLen)},
		&expr.Cmp{Op: op, Register: reg(at), Data: p.Masked().Addr().AsSlice()})
}

// DstLocal goes on where the destination is an address of this node.
func (r Rule) DstLocal(at int) Rule { return r.local(at, true) }

// SrcLocal goes on where the source is an address of this node.
func (r Rule) SrcLocal(at int) Rule { return r.local(at, false) }

func (r Rule) local(at int, dst bool) Rule {
	return append(r,
		&expr.Fib{Register: reg(at), ResultADDRTYPE: true, FlagDADDR: dst, FlagSADDR: !dst},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg(at), Data: binary.NativeEndian.AppendUint32(nil, unix.RTN_LOCAL)})
}

// Proto goes on where the transport protocol is p (unix.IPPROTO_TCP).
func (r Rule) Proto(p byte) Rule { return r.L4Proto(0).Eq(0, []byte{p}) }

// DNATed is the connection status bit of a rewritten destination.
const DNATed = 1 << 5

// CTStatus goes on where the connection has one of the status bits.
func (r Rule) CTStatus(bits uint32) Rule { return r.ct(expr.CtKeySTATUS, bits) }

// CTState goes on where the packet has one of the state bits.
func (r Rule) CTState(bits uint32) Rule { return r.ct(expr.CtKeySTATE, bits) }

func (r Rule) ct(key expr.CtKey, bits uint32) Rule {
	return append(r,
		&expr.Ct{Key: key, Register: reg(0)},
		&expr.Bitwise{SourceRegister: reg(0), DestRegister: reg(0), Len: 4,
			Mask: binary.NativeEndian.AppendUint32(nil, bits), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: reg(0), Data: make([]byte, 4)})
}

// Marked goes on where the packet has the mark's bit.
func (r Rule) Marked(bit uint32) Rule {
	return append(r,
		&expr.Meta{Key: expr.MetaKeyMARK, Register: reg(0)},
		&expr.Bitwise{SourceRegister: reg(0), DestRegister: reg(0), Len: 4,
			Mask: binary.NativeEndian.AppendUint32(nil, bit), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: reg(0), Data: make([]byte, 4)})
}

// Mark sets a bit of the packet's mark.
func (r Rule) Mark(bit uint32) Rule { return r.setMark(^bit, bit) }

// Unmark clears a bit of the packet's mark.
func (r Rule) Unmark(bit uint32) Rule { return r.setMark(^bit, 0) }

func (r Rule) setMark(mask, xor uint32) Rule {
	return append(r,
		&expr.Meta{Key: expr.MetaKeyMARK, Register: reg(0)},
		&expr.Bitwise{SourceRegister: reg(0), DestRegister: reg(0), Len: 4,
			Mask: binary.NativeEndian.AppendUint32(nil, mask), Xor: binary.NativeEndian.AppendUint32(nil, xor)},
		&expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: reg(0)})
}

// DNAT rewrites the destination to the address and port in the registers.
func (r Rule) DNAT(f Family, addr, port int) Rule {
	return append(r, &expr.NAT{Type: expr.NATTypeDestNAT, Family: f.NFProto,
		RegAddrMin: reg(addr), RegProtoMin: reg(port), Specified: true})
}

// Masquerade rewrites the source to this node's address towards the destination.
func (r Rule) Masquerade() Rule { return append(r, &expr.Masq{FullyRandom: true}) }

// RejectTCP answers with a reset; the rule must match TCP.
func (r Rule) RejectTCP() Rule {
	return append(r, &expr.Reject{Type: unix.NFT_REJECT_TCP_RST})
}

// Reject answers that the port is unreachable.
func (r Rule) Reject(f Family) Rule {
	code := uint8(3) // ICMP: port unreachable
	if f.AddrLen == 16 {
		code = 4
	}
	return append(r, &expr.Reject{Type: unix.NFT_REJECT_ICMP_UNREACH, Code: code})
}

// Verdict ends the rule.
func (r Rule) Verdict(kind expr.VerdictKind, chain string) Rule {
	return append(r, &expr.Verdict{Kind: kind, Chain: chain})
}

// Goto ends the rule in another chain.
func (r Rule) Goto(chain string) Rule { return r.Verdict(expr.VerdictGoto, chain) }

// Drop ends the rule and the packet.
func (r Rule) Drop() Rule { return r.Verdict(expr.VerdictDrop, "") }

// Accept ends the rule and the hook's chain.
func (r Rule) Accept() Rule { return r.Verdict(expr.VerdictAccept, "") }

// Return ends the chain.
func (r Rule) Return() Rule { return r.Verdict(expr.VerdictReturn, "") }

// PortKey and ProtoKey encode fields of concatenated keys, padded to a register.
func PortKey(port uint16) []byte { return []byte{byte(port >> 8), byte(port), 0, 0} }

// ProtoKey encodes a transport protocol number.
func ProtoKey(proto byte) []byte { return []byte{proto, 0, 0, 0} }

// NumKey encodes a number as numgen loads it.
func NumKey(n uint32) []byte { return binary.NativeEndian.AppendUint32(nil, n) }
