#include "gateway/kv_transfer.h"

#include <charconv>

#include "gateway/json_member.h"
#include "gateway/request_edit.h"

namespace moonpool::gateway {

const std::map<std::string, KvTransfer>& kv_transfer_words() {
  static const std::map<std::string, KvTransfer> words{{"auto", KvTransfer::kAuto},
                                                       {"pool", KvTransfer::kPool},
                                                       {"nixl", KvTransfer::kNixl},
                                                       {"mooncake", KvTransfer::kMooncake},
                                                       {"none", KvTransfer::kNone}};
  return words;
}

Status set_mooncake_port(KvTransferSettings& settings, std::string_view text) {
  const std::size_t equals = text.find('=');
  const std::string_view digits = equals == std::string_view::npos ? text : text.substr(equals + 1);
  std::uint16_t port = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), port);
  if (error != std::errc() || end != digits.data() + digits.size() || port == 0) {
    return Status(ErrorCode::kConfig, "'" + std::string(text.substr(0, 200)) + "' is neither a port nor host:port=port");
  }
  if (equals == std::string_view::npos) {
    settings.mooncake_port = port;
    return Status();
  }
  const auto instance = InstanceName::parse(text.substr(0, equals));
  if (!instance.ok()) return Status(ErrorCode::kConfig, instance.status().message());
  settings.mooncake_ports.insert_or_assign(std::string(instance->authority()), port);
  return Status();
}

std::string mooncake_prefill_params(std::string_view transfer_id) {
  return R"({"do_remote_decode":true,"do_remote_prefill":false,"transfer_id":")" + std::string(transfer_id) + "\"}";
}

std::string mooncake_decode_params(std::string_view transfer_id, const MooncakeEngine& engine) {
  return R"({"do_remote_decode":false,"do_remote_prefill":true,"remote_bootstrap_addr":")" + engine.bootstrap + R"(","remote_engine_id":)" +
         engine.id_json + R"(,"transfer_id":")" + std::string(transfer_id) + "\"}";
}

std::string_view handed_over(std::string_view prefill_answer) {
  constexpr std::string_view kField = "kv_transfer_params";
  if (prefill_answer.find(kField) == std::string_view::npos) return {};
  const std::string_view value = json_member(prefill_answer, kField);
  JsonMembers members(value);
  return members.next() && is_whole_json(value) ? value : std::string_view();
}

bool ended_for_length(std::string_view prefill_answer) {
  const std::string_view choices = json_member(prefill_answer, "choices");
  const std::size_t first = choices.find('{');
  return first != std::string_view::npos && json_member(choices.substr(first), "finish_reason") == "\"length\"";
}

}  // namespace moonpool::gateway
