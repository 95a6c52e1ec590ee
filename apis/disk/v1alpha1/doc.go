// Package v1alpha1 is the API of Berth. It has the objects that an agent publishes and an operator writes. It has the
// attributes that a volume is requested with, and the record that carries a placement from the scheduler to the node.
//
// It owns the wire formats and nothing else: no placement, no disk, no client. All sizes and positions are in bytes.
//
// +kubebuilder:object:generate=true
// +groupName=disk.berth.dev
package v1alpha1
