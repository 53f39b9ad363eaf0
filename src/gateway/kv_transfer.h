// How a prompt's KV comes from the prefill instance to the decode instance, and what the requests have to say about it.
//
// With a shared pool they say nothing: decode finds the KV by its content. Peer-to-peer connectors of vLLM want "kv_transfer_params" in
// both requests. NixlConnector: prefill is asked to keep the prompt's blocks, its answer says where they are, and that goes into decode's
// request as it is. MooncakeConnector: the answer says nothing; both requests name one transfer, and decode's also the engine and its
// bootstrap server, which mooncake_peers.h asks.
//
// Such blocks are handed over once. The prefill instance frees them when a decode instance has fetched them (or said that it will not), and
// a second one that was sent the same params would read what lies there now (Nixl) or wait minutes for a transfer that is over (Mooncake).
// So only the first decode instance that is asked gets them; a retry and a continued stream compute their prompt. They describe one
// sequence: several prompts or choices cannot share them, so such a request goes to decode alone. Threads: pure functions.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <string_view>

#include "base/result.h"
#include "gateway/instance_name.h"

namespace moonpool::gateway {

enum class KvTransfer {
  kAuto,      // requests as with kPool; what a prefill answer says goes to decode
  kPool,      // no params are added or taken away
  kNixl,      //
  kMooncake,  //
  kNone       // no prefill hop at all
};

struct KvTransferSettings {
  KvTransfer mode = KvTransfer::kAuto;
  std::uint16_t mooncake_port = 8998;                                // of the bootstrap server on a prefill instance's host: vLLM's default
  std::map<std::string, std::uint16_t, std::less<>> mooncake_ports;  // of instances (host:port) that have another one

  [[nodiscard]] std::uint16_t mooncake_port_of(const InstanceName& prefill) const {
    const auto own = mooncake_ports.find(prefill.authority());
    return own == mooncake_ports.end() ? mooncake_port : own->second;
  }
  friend bool operator==(const KvTransferSettings&, const KvTransferSettings&) = default;
};

// By their names in flags and files.
[[nodiscard]] const std::map<std::string, KvTransfer>& kv_transfer_words();
// "9000": every instance's bootstrap port, "host:8100=9000": that of one. kConfig for anything else.
[[nodiscard]] Status set_mooncake_port(KvTransferSettings& settings, std::string_view text);

// The params come from the gateway, whatever the client sent.
[[nodiscard]] inline bool is_peer_to_peer(KvTransfer mode) { return mode == KvTransfer::kNixl || mode == KvTransfer::kMooncake; }

inline constexpr std::string_view kNixlPrefillParams =
    R"({"do_remote_decode":true,"do_remote_prefill":false,"remote_engine_id":null,"remote_block_ids":null,"remote_host":null,"remote_port":null})";

// The engine behind a prefill instance, as its bootstrap server names it.
struct MooncakeEngine {
  std::string id_json;    // its id as JSON text, quotes included
  std::string bootstrap;  // "http://host:port": decode instances have to reach it there
};
[[nodiscard]] std::string mooncake_prefill_params(std::string_view transfer_id);
[[nodiscard]] std::string mooncake_decode_params(std::string_view transfer_id, const MooncakeEngine& engine);

// The "kv_transfer_params" of a prefill answer as written; empty when there are none, or they are no object with members.
[[nodiscard]] std::string_view handed_over(std::string_view prefill_answer);
// Whether its first choice ended for its length. MooncakeConnector drops the blocks of one that ended otherwise, which nobody can fetch
// then.
[[nodiscard]] bool ended_for_length(std::string_view prefill_answer);

}  // namespace moonpool::gateway
