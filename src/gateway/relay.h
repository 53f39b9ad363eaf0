// One client request through the instances: prefill with one token, then the client's own body to decode, the answer streamed back.
//
// What the two hops are told of each other, where the KV does not come through a pool: kv_transfer.h.
//
// The failure contract (docs/gateway.md has the table):
//  * prefill: an instance's own failure (no connection, 5xx, deadline) moves on to the next; when all fail, decode does the whole job,
//    which costs time and nothing else. A 4xx is about the request and goes to the client.
//  * decode, before the first byte to the client: the next instance is tried, a bounded number of times; then 502, 503 or 504.
//  * decode, after the first byte: a stream that may be continued (continuation.h) goes on at another instance; any other ends with an
//  error
//    event and a connection closed without the last chunk. An answer that is not a stream is held until it is whole (bounded), so there is
//    no such moment for it. A stream that ends without [DONE], or with an error of the instance's own, was cut short, however politely.
//  * no instance is asked twice for one hop, retries are paused and within a budget (retry.h).
//  * the client goes away: the instance at work sees its connection closed at once.
// Threads: the client's. Ownership: on the session's stack, one request long.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "gateway/cancellation.h"
#include "gateway/client_connection.h"
#include "gateway/continuation.h"
#include "gateway/gateway_state.h"
#include "gateway/http_message.h"
#include "gateway/prompt_chain.h"
#include "gateway/request_edit.h"
#include "gateway/request_record.h"
#include "gateway/sse.h"
#include "gateway/time_limit.h"
#include "gateway/upstream.h"

namespace moonpool::gateway {

class Relay {
 public:
  Relay(GatewayState& state, UpstreamPool& pool, ClientConnection& client, const RequestParser& request, RequestRecord& record,
        bool keep_alive);

  // Prefill, then decode. True when the client's connection can take another request.
  [[nodiscard]] Task<bool> completion();
  // One hop, to `group`.
  [[nodiscard]] Task<bool> forward(Group& group);

 private:
  using Time = RequestRecord::Time;

  // How one instance's turn ended.
  enum class Turn { kAnswered, kFailed, kClientGone };
  // Why no instance has answered yet. `answer` is an instance's own 5xx, passed on when nothing better came.
  struct Failure {
    Status reason;
    std::string instance;
    std::unique_ptr<Exchange> answer;
  };
  struct Framed {
    std::string head;
    std::string_view tail;
  };
  // The instances tried for one hop, and the pause between them.
  class Tries;

  [[nodiscard]] bool skips_prefill();
  [[nodiscard]] Task<Turn> prefill(std::string body);
  // Whether the tokens of this prompt would tell who has it (kv_events/learned_prompts.h); and what prefill's answer says of them.
  [[nodiscard]] bool wants_tokens();
  void learn_tokens(std::string_view answer);
  [[nodiscard]] Task<Turn> prefill_on(const std::shared_ptr<Instance>& instance, std::string_view body);
  // Takes what decode is to know of the blocks out of a prefill answer. `mooncake_params`: what the gateway itself knows.
  void hand_over(std::string_view answer, const std::string& mooncake_params);
  // A decode instance was asked: no other one may be told of the same blocks.
  [[nodiscard]] bool may_be_the_blocks(const Failure& failure) const;
  void forget_handed_over();
  [[nodiscard]] std::string_view decode_body() const;
  [[nodiscard]] Task<Turn> decode_on(const std::shared_ptr<Instance>& instance);
  [[nodiscard]] Task<Turn> stream(Instance& instance, std::unique_ptr<Exchange> exchange, Time sent);
  [[nodiscard]] Task<Turn> whole_answer(Instance& instance, std::unique_ptr<Exchange> exchange, Time sent);
  [[nodiscard]] Task<Turn> pass_through(Instance& instance, std::unique_ptr<Exchange> exchange, Time sent);
  [[nodiscard]] Task<Turn> send_answer(Exchange& exchange);
  // `tried` says how many were, empty when there was none.
  [[nodiscard]] Task<bool> give_up(const Group& group, std::string tried);
  [[nodiscard]] Task<bool> send_error(unsigned status, std::string message, std::string_view extra_fields = {});
  // In relay_stream.cpp, as stream() is.
  [[nodiscard]] std::string stream_bytes(SseStream& events, const Instance& instance, std::string bytes, bool over, Status& status);
  [[nodiscard]] Framed frame(const ResponseParser& answer, std::size_t bytes, bool last);
  [[nodiscard]] Task<Turn> stream_failed(Instance& instance, Status status);
  [[nodiscard]] Task<bool> end_cut_stream(std::string why_not_continued);
  [[nodiscard]] Task<bool> write_error_event(std::string_view message);
  [[nodiscard]] std::string continued_mark() const;
  [[nodiscard]] Task<bool> write(std::string_view head, std::string_view body = {}, std::string_view tail = {});
  [[nodiscard]] Task<Result<std::unique_ptr<Exchange>>> open(Instance& instance, std::string_view body, Patience patience,
                                                             std::string_view more_fields = {});

  Turn instance_failed(Instance& instance, Status reason, std::unique_ptr<Exchange> answer = nullptr);
  [[nodiscard]] RequestFacts facts() { return {request_.path(), request_.body, &request_.headers, &prompt_}; }
  [[nodiscard]] Patience between_bytes() const { return {state_.settings().timeouts.between_bytes, "--between-bytes-timeout"}; }
  [[nodiscard]] Task<bool> finish(Turn turn);
  [[nodiscard]] Task<bool> stopped();
  // Asked when a head is written: the gateway may have begun to stop since the request came.
  [[nodiscard]] bool keeps_alive() { return keep_alive_ = keep_alive_ && !state_.stopping.load(std::memory_order_relaxed); }
  // The hop's span, where there is one.
  void begin_hop(const Instance& instance);
  void end_hop();

  GatewayState& state_;
  UpstreamPool& pool_;
  ClientConnection& client_;
  const RequestParser& request_;
  PromptChain prompt_;
  RequestRecord& record_;
  const TimeLimit deadline_;
  const std::string forwarded_fields_;
  const KvTransfer kv_transfer_;
  bool keep_alive_;
  Cancellation cancellation_;
  std::optional<Failure> failure_;  // the latest one's
  PrefillBody asked_;               // what its scan says of the client's request; the text goes to prefill
  std::string decode_body_;         // with other kv_transfer_params than the client's; empty: the client's bytes
  bool handed_over_ = false;        // it tells of blocks that a prefill instance keeps for this request
  // Of a stream that may go on elsewhere.
  std::optional<Continuation> continuation_;
  std::string continued_body_;  // what the next instance is sent
  bool between_events_ = true;  // what the client has ends with a whole event
  bool mid_line_ = false;       // or within a line
  bool is_stream_ = false;      // it is an event stream
};

}  // namespace moonpool::gateway
