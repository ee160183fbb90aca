// An empty stand-in: nothing that is built here needs it.
module k8s.io/sample-cli-plugin

go 1.26
