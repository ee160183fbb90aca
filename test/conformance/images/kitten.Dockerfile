FROM registry.k8s.io/e2e-test-images/agnhost:2.66.1
COPY kitten.jpg kitten.jpg
COPY kitten.json data.json
CMD ["test-webserver"]
