package placement

import (
	"math"
	"strconv"
)

// units from Mi on: sizes are multiples of 1 MiB.
var units = [...]string{"Mi", "Gi", "Ti", "Pi", "Ei"}

// maxDigits is up to how many digits an exact size is readable.
const maxDigits = 5

// AddCapped adds sizes whose sum may exceed an int64: those of several disks, or of all volumes of a pod. A larger sum
// is math.MaxInt64.
func AddCapped(a, b int64) int64 {
	if a > math.MaxInt64-b {
		return math.MaxInt64
	}
	return a + b
}

// FormatSize writes a size for display: exactly if that is short, else rounded down.
func FormatSize(size int64) string { return sizeDown(size) }

// sizeDown writes a size that is available: exactly if that is short, else rounded down.
func sizeDown(size int64) string { return formatSize(size, false) }

// sizeUp writes a size that is requested: exactly if that is short, else rounded up. So an available size never reads
// as large as a larger requested one.
func sizeUp(size int64) string { return formatSize(size, true) }

// formatSize writes a size: exactly if that is short, else in tenths of a unit, rounded down or up.
func formatSize(size int64, up bool) string {
	if size <= 0 {
		return "0"
	}
	mib, unit := size/Alignment, 0
	for mib >= 1024 && mib%1024 == 0 && unit < len(units)-1 {
		mib /= 1024
		unit++
	}
	if exact := strconv.FormatInt(mib, 10); len(exact) <= maxDigits {
		return exact + units[unit]
	}

	// Too many digits: tenths of the largest unit of which there is at least one.
	mib, unit = size/Alignment, 0
	one := int64(1) // of the unit, in MiB
	for mib/one >= 1024 && unit < len(units)-1 {
		one *= 1024
		unit++
	}
	whole, tenths := mib/one, mib%one*10/one
	if up && mib%one*10%one != 0 {
		tenths++
	}
	if tenths == 10 {
		whole, tenths = whole+1, 0
	}
	if tenths == 0 {
		return strconv.FormatInt(whole, 10) + units[unit]
	}
	return strconv.FormatInt(whole, 10) + "." + strconv.FormatInt(tenths, 10) + units[unit]
}
