# The generated messages (wire.pb.h) as moonpool_wire.
set(moonpool_wire_dir ${CMAKE_BINARY_DIR}/generated)
file(MAKE_DIRECTORY ${moonpool_wire_dir})
add_custom_command(
  OUTPUT ${moonpool_wire_dir}/wire.pb.cc ${moonpool_wire_dir}/wire.pb.h
  COMMAND protobuf::protoc --proto_path=${CMAKE_SOURCE_DIR}/proto --cpp_out=${moonpool_wire_dir} wire.proto
  DEPENDS ${CMAKE_SOURCE_DIR}/proto/wire.proto)
add_library(moonpool_wire STATIC ${moonpool_wire_dir}/wire.pb.cc ${moonpool_wire_dir}/wire.pb.h)
target_include_directories(moonpool_wire SYSTEM PUBLIC ${moonpool_wire_dir})
target_link_libraries(moonpool_wire PUBLIC protobuf::libprotobuf-lite)
target_compile_options(moonpool_wire PRIVATE -w)
if(MOONPOOL_SANITIZE)
  target_compile_options(moonpool_wire PRIVATE -fsanitize=${MOONPOOL_SANITIZE})
endif()
