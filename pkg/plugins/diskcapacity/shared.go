package diskcapacity

import (
	"k8s.io/client-go/informers"

	"github.com/berthdev/berth/pkg/ledger"
)

// SharedLedger returns the ledger that the profiles of a scheduler share, by the factory of
// its informers: for whoever else places volumes in the process. synced tells when the
// ledger has everything that existed when the scheduler started; before that it would sell
// space that is taken. It is false if no profile has the plugin.
func SharedLedger(factory informers.SharedInformerFactory) (l *ledger.Ledger, synced func() bool, ok bool) {
	feeds.Lock()
	defer feeds.Unlock()
	f, ok := feeds.byFactory[factory]
	if !ok {
		return nil, nil, false
	}
	return f.ledger, f.hasSynced, true
}
