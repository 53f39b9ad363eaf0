#include "transfer/transport.h"

namespace moonpool::transfer {

namespace {

template <typename Operation>
void refuse(std::span<Operation> operations, const char* why) {
  for (auto& operation : operations) operation.status = Status(ErrorCode::kNotSupported, why);
}

constexpr const char* kNoCommonMemory = "this path has no memory in common with its peers";
constexpr const char* kNoNics = "this path has no NICs that reach the memory of devices";

}  // namespace

void Transport::view(const Peer&, std::span<ViewOperation> operations, Deadline) { refuse(operations, kNoCommonMemory); }

void Transport::write_in_place(const Peer&, std::span<WriteOperation> operations, const Fill&, Deadline) {
  refuse(operations, kNoCommonMemory);
}

void Transport::write_device(const Peer&, std::span<WriteOperation> operations, Deadline) { refuse(operations, kNoNics); }

void Transport::read_device(const Peer&, std::span<ReadOperation> operations, Deadline) { refuse(operations, kNoNics); }

}  // namespace moonpool::transfer
