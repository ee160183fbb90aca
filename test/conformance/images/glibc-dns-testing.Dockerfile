FROM conformance/base:1
COPY coredns /coredns
CMD ["bash"]
