// Bytes as every hot message: the lean parser accepts whatever the generated class writes, and what both accepted they read alike. (The
// lean one accepts more in one place, since it does not ask `string` fields to be UTF-8, and less in another: a tag of more than 32 bits,
// of which the generated class drops the rest.)
#include <google/protobuf/stubs/logging.h>

#include <cstddef>
#include <cstdint>
#include <string>

#include "net/object_messages.h"
#include "wire.pb.h"

namespace {

using namespace moonpool;  // NOLINT(google-build-using-namespace)

template <typename Lean, typename Generated>
void check(const std::string& bytes) {
  Lean message;
  const bool ours = net::lean::parse(std::as_bytes(std::span(bytes)), message);
  Generated generated;
  const bool theirs = generated.ParseFromString(bytes);
  if (!ours || !theirs) return;
  std::string again;
  net::lean::write(message, again);
  Generated second;
  if (!second.ParseFromString(again)) __builtin_trap();
  // What the generated class has read, in its own spelling, is to us the same message. (It keeps unknown fields, which we drop.)
  const std::string spelled = generated.SerializeAsString();
  Lean other;
  if (!net::lean::parse(std::as_bytes(std::span(spelled)), other)) __builtin_trap();
  std::string once_more;
  net::lean::write(other, once_more);
  // Descriptions of segments stay in the spelling in which they came.
  if constexpr (!requires { message.segment.front().size(); }) {
    if (once_more != again) __builtin_trap();
  }
}

}  // namespace

extern "C" int LLVMFuzzerInitialize(int*, char***) {
  google::protobuf::SetLogHandler(nullptr);  // it has a line to say about each text that is not UTF-8
  return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  const std::string bytes(reinterpret_cast<const char*>(data) + 1, size - 1);
  namespace lean = net::lean;
  switch (data[0] % 8) {
    case 0:
      check<lean::PutStartRequest, wire::PutStartRequest>(bytes);
      break;
    case 1:
      check<lean::PutStartReply, wire::PutStartReply>(bytes);
      break;
    case 2:
      check<lean::PutCommitRequest, wire::PutCommitRequest>(bytes);
      break;
    case 3:
      check<lean::ExistRequest, wire::ExistRequest>(bytes);
      break;
    case 4:
      check<lean::GetReplicasReply, wire::GetReplicasReply>(bytes);
      break;
    case 5:
      check<lean::WriteRequest, wire::WriteRequest>(bytes);
      break;
    case 6:
      check<lean::ReadReply, wire::ReadReply>(bytes);
      break;
    default:
      check<lean::SegmentInfo, wire::SegmentInfo>(bytes);
      break;
  }
  return 0;
}
