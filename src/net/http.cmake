# The small HTTP client and server of the control plane, apart from the framed wire.
moonpool_module(http
  SOURCES http_url.cpp deadline_socket.cpp http_client.cpp http_server.cpp
  DEPENDS moonpool_base moonpool_boost moonpool_net)
moonpool_test(http_test SOURCES http_test.cpp DEPENDS moonpool_http moonpool_test_support LABELS core)
