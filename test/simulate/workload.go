package main

import (
	"math"
	"math/rand/v2"

	"github.com/berthdev/berth/test/units"
)

// diskSize is the size of a drive of 3.84 TB, in whole GiB.
const diskSize = 3576

// Sizes of volumes. The mean is that of more than 90,000 virtual machines in IBM's private clouds, which used 22 PB
// (Birke and others, FAST '14). The shape is lognormal with a median of 100 GiB.
const (
	meanSize   = 22e15 / 90e3 / float64(units.GiB) // 228 GiB
	medianSize = 100
)

// Lifetimes. In Google's clouds 88 % of the virtual machines live for less than an hour. They use 2 % of the resources
// (Ling and others, LAVA, MLSys '25). A mixture of two exponential distributions with these parameters, in hours, has
// these shares. Mixtures of exponentials fit the known data of private clouds (Wolski and Brevik, IEEE Transactions on
// Services Computing, 2014). The tests check the 88 % and 2 %.
const (
	shortShare = 0.8953
	shortMean  = 0.25
	longMean   = 95.23
)

// workload is the distribution of the sizes and lifetimes of volumes.
type workload struct {
	name string
	size func(*rand.Rand) int32 // GiB
	// life is the lifetime of a new volume in hours, rest the remaining lifetime of one that exists at any moment.
	life, rest func(*rand.Rand) float64
	// meanLife is the mean of life.
	meanLife float64
	// turnover is the time in which about all bytes are replaced.
	turnover float64
}

// workloads are the one that counts, and others that show how much depends on its assumptions.
var workloads = []workload{
	{"cloud", lognormalSize, mixedLife, mixedRest, mixedMean, longMean},
	{"sizes in powers of two", tierSize, mixedLife, mixedRest, mixedMean, longMean},
	{"sizes 1, 2, 5, 10, …", roundSize, mixedLife, mixedRest, mixedMean, longMean},
	{"sizes half as large", halfSize, mixedLife, mixedRest, mixedMean, longMean},
	{"sizes even from 1 to 500 GiB", evenSize, mixedLife, mixedRest, mixedMean, longMean},
	{"lifetimes exponential", lognormalSize, exponentialLife, exponentialLife, longMean, longMean},
	{"lifetimes lognormal", lognormalSize, lognormalLife, lognormalRest, lognormalMeanLife, lognormalTurnover},
}

func lognormal(r *rand.Rand, mu, sigma float64) float64 { return math.Exp(mu + sigma*r.NormFloat64()) }

// rawSize is the requested size before it is rounded, at most a disk.
func rawSize(r *rand.Rand) float64 {
	sigma := math.Sqrt(2 * math.Log(meanSize/medianSize))
	for {
		if size := lognormal(r, math.Log(medianSize), sigma); size <= diskSize {
			return size
		}
	}
}

func lognormalSize(r *rand.Rand) int32 { return int32(math.Ceil(rawSize(r))) }

func halfSize(r *rand.Rand) int32 { return int32(math.Ceil(rawSize(r) / 2)) }

func evenSize(r *rand.Rand) int32 { return 1 + r.Int32N(500) }

// tierSize rounds up like providers that sell disks in powers of two.
func tierSize(r *rand.Rand) int32 {
	for {
		size := int32(4)
		for raw := rawSize(r); float64(size) < raw; size *= 2 {
		}
		if size <= diskSize {
			return size
		}
	}
}

// roundSize rounds up to the round sizes that are usual in claims.
func roundSize(r *rand.Rand) int32 {
	steps := [...]int32{1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000}
	for {
		raw := rawSize(r)
		for _, size := range steps {
			if float64(size) >= raw {
				return size
			}
		}
	}
}

var mixedMean = shortShare*shortMean + (1-shortShare)*longMean

func mixedLife(r *rand.Rand) float64 {
	mean := longMean
	if r.Float64() < shortShare {
		mean = shortMean
	}
	return mean * r.ExpFloat64()
}

// mixedRest selects long lives more often than mixedLife, because they exist for longer. The rest of an exponential
// life has the same distribution as a whole one.
func mixedRest(r *rand.Rand) float64 {
	mean := longMean
	if r.Float64() < shortShare*shortMean/mixedMean {
		mean = shortMean
	}
	return mean * r.ExpFloat64()
}

func exponentialLife(r *rand.Rand) float64 { return longMean * r.ExpFloat64() }

// The lognormal distribution with the same 88 % and 2 %. Half of the volumes that exist at any moment live for a month
// or longer, so weeks do not replace all bytes.
const (
	lognormalMu       = -3.794
	lognormalSigma    = 3.229
	lognormalTurnover = 95.23
)

var lognormalMeanLife = math.Exp(lognormalMu + lognormalSigma*lognormalSigma/2)

func lognormalLife(r *rand.Rand) float64 { return lognormal(r, lognormalMu, lognormalSigma) }

func lognormalRest(r *rand.Rand) float64 {
	return r.Float64() * lognormal(r, lognormalMu+lognormalSigma*lognormalSigma, lognormalSigma)
}

// Growth. We found no published figures, so these are assumptions. A volume asks at random moments of its life, on
// average once in four mean lives of the long-lived volumes: 16 days. It asks for 1.25 to 4 times its size. The least
// is a cautious step, and the most is for a volume that was made far too small. The logarithm of the factor is even: as
// many ask for 1.25 to 1.5 times the size as for 2.5 to 3 times. None asks for more than a disk has.
const (
	growthEvery = 4 * longMean // hours
	leastGrowth = 125          // percent
	mostGrowth  = 400
)

// wishes are the requests of volumes to grow. A nil one has none.
type wishes struct{ rand *rand.Rand }

// plan adds the next request of a volume, unless its life is over before.
func (g *wishes) plan(due *moments, now float64, slot int32, end float64) {
	if g == nil {
		return
	}
	if at := now + growthEvery*g.rand.ExpFloat64(); at < end {
		due.push(moment{at: at, slot: slot, grows: true, end: end})
	}
}

// size is what a volume of that size wants to have.
func (g *wishes) size(now int32) int32 {
	percent := int32(leastGrowth * math.Pow(float64(mostGrowth)/leastGrowth, g.rand.Float64()))
	return min(diskSize, (now*percent+99)/100)
}
