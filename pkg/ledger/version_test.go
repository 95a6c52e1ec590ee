package ledger

// setFirst folds in a PersistentVolume with one part of what a version says, for tests that are about that part.
func (l *Ledger) setFirst(pvUID, nodeName string, r Record) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.setExisting(pvUID, nodeName, r)
}

// setOnlyPieces is setFirst for the further pieces.
func (l *Ledger) setOnlyPieces(pvUID, nodeName string, version uint64, pieces []Record) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.setPieces(pvUID, nodeName, version, pieces)
}

// setOnlyMove is setFirst for the move.
func (l *Ledger) setOnlyMove(pvUID, nodeName string, version uint64, m *Move) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.setMove(pvUID, nodeName, version, m)
}
