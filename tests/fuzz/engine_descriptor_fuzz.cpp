// What a metadata server or a peer says an engine's memory is: any bytes give a segment or an error, and no lookup in it overflows.
#include <cstdlib>

#include "transfer/segment_directory.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  moonpool::wire::EngineDescriptor descriptor;
  if (!descriptor.ParseFromArray(data, static_cast<int>(size))) return 0;
  const auto segment = moonpool::transfer::parse_descriptor(descriptor, "peer");
  if (!segment.ok()) return 0;
  for (const auto& range : segment->ranges) {
    const auto* const found = segment->range_of({range.address, range.length + 1});
    if (found != nullptr && range.length + 1 != 0 && found->length <= range.length) std::abort();
  }
  return 0;
}
