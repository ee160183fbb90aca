package framework

// Topological is implemented by a plugin whose answer about a node depends on the
// pods of other nodes, through how many there are in the node's topology domain.
// It says once for a Subject what is to be counted; the counts are kept while pods
// come and go, and nodes that are alike in all counts are judged together.
type Topological interface {
	Plugin
	Topology(sub Subject, s *Snapshot) Topology
	// FilterDomains says whether nodes with these counts can take the pod.
	FilterDomains(state any, d Domains) *Status
	// Scored tells whether such nodes are scored; those that are not get 0.
	Scored(state any, d Domains) bool
	// ScoreDomains says how well such nodes suit, to be normalized.
	ScoreDomains(state any, d Domains) int64
	// NormalizeDomains maps a raw score to 0..MaxScore, given the least and the
	// greatest of the nodes that can take the pod and are scored.
	NormalizeDomains(raw, least, greatest int64) int64
}

// Topology is what a plugin needs counted for a subject. The zero value means
// that the plugin has nothing to say of it.
type Topology struct {
	Counts          []Count
	State           any
	Filters, Scores bool
	// Shape is the same where the counts, once made, still serve.
	Shape string
}

// Count is a sum over the pods of every domain of a topology key.
type Count struct {
	Key string
	// PerNode sums each node's pods alone. Key still tells which nodes have it.
	PerNode bool
	// Distinct is needed for Domains.Candidates, Least for Domains.Least.
	Distinct, Least bool
	// Eligible says which nodes' pods count and which domains there are; nil for
	// all nodes. It depends on the node's object alone.
	Eligible func(n *Node) bool
	// Weigh is what a pod on a node adds.
	Weigh func(p *Pod) int64
}

// Domains are the counts at the nodes that are judged; i is the index in
// Topology.Counts.
type Domains interface {
	// Has tells whether the nodes have the count's key.
	Has(i int) bool
	// Of is the sum of the nodes' domain.
	Of(i int) int64
	// Least is the least sum of a domain with eligible nodes, Number how many
	// such domains there are, Total the sum over all domains.
	Least(i int) int64
	Number(i int) int
	Total(i int) int64
	// Candidates is the number of domains of the nodes that can take the pod and
	// are scored, or of those nodes for a count PerNode. It is for scoring alone.
	Candidates(i int) int
}
