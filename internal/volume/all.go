package volume

// All are the types there are.
func All() []Type {
	return []Type{
		emptyDir{},
		hostPath{},
		configMap{},
		secret{},
		downwardAPI{},
		projected{},
	}
}
