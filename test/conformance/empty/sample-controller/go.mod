// An empty stand-in: nothing that is built here needs it.
module k8s.io/sample-controller

go 1.26
