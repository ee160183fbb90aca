FROM conformance/busybox:1
USER 1234
CMD ["sh"]
