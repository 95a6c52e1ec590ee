package publish

import (
	"context"
	"encoding/json"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
)

// cleanMetadata removes from the object's metadata what must not be there: Nodes as owners, because deleting the Node
// would delete what is known of its disks, and managed fields that no client needs.
func (p *Publisher) cleanMetadata(ctx context.Context, ndc *diskv1alpha1.NodeDiskCapacity) (*diskv1alpha1.NodeDiskCapacity, error) {
	metadata := map[string]any{}
	if others := slices.DeleteFunc(slices.Clone(ndc.OwnerReferences), isNode); len(others) < len(ndc.OwnerReferences) {
		metadata["ownerReferences"] = others
	}
	if needless(ndc.ManagedFields) {
		// One empty entry is how the API is asked to remove all.
		metadata["managedFields"] = []metav1.ManagedFieldsEntry{{}}
	}
	if len(metadata) == 0 {
		return ndc, nil
	}
	metadata["resourceVersion"] = ndc.ResourceVersion
	body, err := json.Marshal(map[string]any{"metadata": metadata})
	if err != nil {
		return nil, err
	}
	out, err := p.options.Client.PatchCapacity(ctx, body)
	return out, p.recordAnswer(out, err)
}

// isNode reports whether the owner is a Node, which former agents set.
func isNode(r metav1.OwnerReference) bool { return r.Kind == "Node" }

// needless reports whether managed fields serve no client: only server-side apply uses them. The API server compares
// and stores them with every publication, a third of what a publication costs it. Once they are removed it adds none
// until a client applies the object.
func needless(fields []metav1.ManagedFieldsEntry) bool {
	return len(fields) > 0 && !slices.ContainsFunc(fields, func(f metav1.ManagedFieldsEntry) bool {
		return f.Operation == metav1.ManagedFieldsOperationApply
	})
}
