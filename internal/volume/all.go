package volume

// All are the types there are.
func All() []Type {
	return []Type{
		emptyDir{},
		hostPath{},
		local{},
		configMap{},
		secret{},
		downwardAPI{},
		projected{},
		image{},
		csi{},
	}
}
