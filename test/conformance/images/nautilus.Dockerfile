FROM registry.k8s.io/e2e-test-images/agnhost:2.66.1
COPY nautilus.jpg nautilus.jpg
COPY nautilus.json data.json
CMD ["test-webserver"]
