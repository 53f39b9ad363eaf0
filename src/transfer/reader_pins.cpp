#include "transfer/reader_pins.h"

#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace moonpool::transfer {

namespace {

Status contradiction(const char* what) { return {ErrorCode::kProtocol, std::string("pinning extents: ") + what}; }

bool same_columns(const wire::ShmPinRequest& request) {
  const int entries = request.segment_size();
  return request.offset_size() == entries && request.length_size() == entries && request.version_term_size() == entries &&
         request.version_count_size() == entries && request.first_chunk_size() == entries && request.chunk_count_size() == entries;
}

}  // namespace

Status ReaderPins::pin(Owner& owner, const wire::ShmPinRequest& request, wire::ShmPinReply& reply, const std::function<void()>& abort) {
  if (!same_columns(request)) return contradiction("the columns of a request differ in length");
  if (pins_.size() + static_cast<std::size_t>(request.segment_size()) > kMaxPins) {
    return {ErrorCode::kUnavailable, "this process holds too many extents: release some"};
  }
  std::vector<std::optional<Incarnation>> incarnations;
  for (const auto& bytes : request.incarnation()) incarnations.push_back(Incarnation::from_bytes(bytes));
  std::vector<bool> hooked(incarnations.size());  // one abort hook per segment and request is enough
  for (int i = 0; i < request.segment_size(); ++i) {
    const auto segment = request.segment(i);
    if (segment >= incarnations.size() || !incarnations[segment]) return contradiction("an entry refers to no segment");
    const ExtentRef ref{*incarnations[segment], request.offset(i), request.length(i),
                        Version{Term{request.version_term(i)}, request.version_count(i)}};
    auto pin = owner.begin_read(ref, hooked[segment] ? std::function<void()>() : abort);
    Status status = pin.status();
    if (pin.ok()) {
      const auto all = pin->checksums();
      const std::uint64_t first = request.first_chunk(i);
      const std::uint64_t count = request.chunk_count(i);
      if (first > all.size() || count > all.size() - first) {
        status = Status(ErrorCode::kInvalidRead, "");
      } else if (static_cast<std::uint64_t>(reply.checksum_size()) + count > most_checksums_) {
        status = Status(ErrorCode::kNotSupported, "");
      } else if (!pins_.try_emplace(request.first_pin() + static_cast<std::uint64_t>(i), std::move(*pin)).second) {
        status = Status(ErrorCode::kInvalidRead, "");
      } else {
        hooked[segment] = true;
        reply.mutable_checksum()->Add(all.begin() + static_cast<std::ptrdiff_t>(first),
                                      all.begin() + static_cast<std::ptrdiff_t>(first + count));
      }
    }
    reply.add_status(status.number());
  }
  return {};
}

void ReaderPins::unpin(const wire::ShmUnpinRequest& request) {
  for (const auto pin : request.pin()) pins_.erase(pin);
}

}  // namespace moonpool::transfer
