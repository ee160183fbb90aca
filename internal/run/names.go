package run

import "strconv"

// Names that are generated are of what floats and of how it does.
var (
	manners = []string{
		"able", "airy", "ample", "bold", "brave", "bright", "brisk", "calm", "clear", "clever", "cosy", "crisp", "daring",
		"deep", "eager", "early", "easy", "fair", "fast", "fine", "fleet", "fond", "fresh", "gentle", "glad", "golden", "grand",
		"handy", "happy", "hardy", "honest", "idle", "jolly", "keen", "kind", "late", "light", "lively", "lone", "loyal", "lucky",
		"merry", "mild", "neat", "nimble", "noble", "patient", "plain", "plucky", "proud", "quick", "quiet", "rapid", "ready",
		"rosy", "salty", "shy", "silent", "sleek", "small", "smart", "snug", "solid", "spry", "steady", "stout", "sunny", "swift",
		"tidy", "tiny", "trim", "true", "warm", "wild", "windy", "wise", "witty", "young",
	}
	vessels = []string{
		"ark", "barge", "bark", "boat", "brig", "buoy", "canoe", "caravel", "carrack", "catboat", "clipper", "coble", "cog",
		"coracle", "cruiser", "currach", "cutter", "dhow", "dinghy", "dory", "drifter", "felucca", "ferry", "frigate", "galleon",
		"galley", "gig", "gondola", "hooker", "hoy", "hulk", "junk", "kayak", "keel", "ketch", "knarr", "launch", "lighter",
		"liner", "longship", "lugger", "packet", "pinnace", "pirogue", "pontoon", "proa", "pram", "punt", "raft", "sampan",
		"schooner", "scow", "scull", "shallop", "ship", "skiff", "sloop", "smack", "tanker", "tender", "trawler", "trimaran",
		"trireme", "tug", "umiak", "wherry", "xebec", "yacht", "yawl",
	}
)

// GenerateName makes a name that is not taken.
func GenerateName(random func(int) int, taken func(string) bool) string {
	for tries := 0; ; tries++ {
		n := manners[random(len(manners))] + "-" + vessels[random(len(vessels))]
		if tries >= 10 {
			n += "-" + strconv.Itoa(random(10000))
		}
		if taken == nil || !taken(n) {
			return n
		}
	}
}
