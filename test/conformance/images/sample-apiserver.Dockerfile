FROM scratch
COPY sample-apiserver /sample-apiserver
ENTRYPOINT ["/sample-apiserver"]
