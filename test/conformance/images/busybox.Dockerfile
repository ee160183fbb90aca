FROM conformance/busybox:1
CMD ["sh"]
