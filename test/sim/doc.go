// Package sim simulates whole clusters: the API server over the store in memory,
// the controllers, the scheduler and hollow nodes, in the time of
// testing/synctest, under random operations and faults.
//
// A step is one change of the cluster's state, as the store has it, leases and
// events left out. After each the invariants hold (see invariants_test.go); when
// the faults stop, the cluster comes to rest in the state that was asked for
// (settle_test.go), and then nothing is written any more.
//
//	go test ./test/sim -seed 7 -steps 20000    one seed, until that many steps
//
// A failure prints its seed and what happened last. Operations, faults and what
// pods do follow from the seed alone; what does not is the order in which the
// runtime runs goroutines that are ready at the same instant of simulated time,
// and with it who meets a conflict. With one processor (as TestMain sets) the same
// seed does nearly the same; a failure that depends on such an order may need
// -count.
package sim
