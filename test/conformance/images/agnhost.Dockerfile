# The suite's all-round test image: its program agnhost, and the tools that tests
# call in its pods.
FROM conformance/base:1
RUN mkdir -p /uploads /usr/local/bin && ln -s agnhost /agnhost-2 && ln -s /usr/bin/iperf /usr/local/bin/iperf \
 && ln -s nc.openbsd /usr/bin/nc \
 && echo 'user-defined-in-image:x:1000:1000::/home:/bin/sh' >> /etc/passwd \
 && echo 'user-defined-in-image:x:1000:' >> /etc/group \
 && echo 'group-defined-in-image:x:50000:user-defined-in-image' >> /etc/group
COPY agnhost coredns localhost.crt localhost.key /
EXPOSE 80 8080 8081 9376 5000
ENTRYPOINT ["/agnhost"]
CMD ["pause"]
