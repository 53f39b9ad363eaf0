// Any bytes as a request body: no crash, and what is accepted stays acceptable and is edited once and for all. Any bytes as a prefill
// answer: what it hands over is whole JSON, which goes into a request as it is.
#include <cstdlib>
#include <string>

#include "gateway/kv_transfer.h"
#include "gateway/request_edit.h"

namespace {

void check(bool holds) {
  if (!holds) std::abort();
}

void edit_params(std::string_view body, std::string_view params) {
  using namespace moonpool::gateway;
  const std::string with = with_kv_transfer_params(body, params);
  const std::string without = with_kv_transfer_params(body, {});
  const auto read_with = make_prefill_body(with);
  const auto read_without = make_prefill_body(without);
  check(read_with.ok() && read_with->has_kv_transfer_params);
  check(read_without.ok() && !read_without->has_kv_transfer_params);
  check(handed_over(with).empty() || is_whole_json(handed_over(with)));
  const std::string again = with_kv_transfer_params(with, params);  // white space of an empty object may go with the first field
  check(with_kv_transfer_params(again, params) == again);
  check(with_kv_transfer_params(without, {}) == without);
  check(read_with->has_several_sequences == read_without->has_several_sequences);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const unsigned char* data, std::size_t size) {
  using namespace moonpool::gateway;
  const std::string_view body(reinterpret_cast<const char*>(data), size);
  const auto first = make_prefill_body(body);
  if (first.ok()) {
    const auto second = make_prefill_body(first->text);
    check(second.ok() && second->text == first->text);
    edit_params(body, kNixlPrefillParams);
  } else {
    check(with_kv_transfer_params(body, "1") == body);
  }
  const std::string_view params = handed_over(body);
  if (!params.empty()) check(is_whole_json(params) && make_prefill_body(with_kv_transfer_params("{}", params)).ok());
  static_cast<void>(ended_for_length(body));
  static_cast<void>(is_whole_json(body));
  return 0;
}
