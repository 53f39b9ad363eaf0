// What the simulated instance says: its model's answer to a request, whole or as the pieces of a stream, and the points where it can go
// wrong. upstream_simulator.h has how it is sent, and how it fails. Threads: values.
#pragma once

#include <string>
#include <vector>

#include "gateway/testing/upstream_simulator.h"

namespace moonpool::gateway::testing {

// What the simulated model makes of a request.
struct Job {
  bool chat = false;
  bool streamed = false;
  bool usage = false;      // a usage chunk at the end
  bool token_ids = false;  // in every event
  std::size_t first = 0;   // tokens of the text that the prompt has already
  std::size_t count = 0;   // to be made
  bool cut_by_limit = false;
  std::size_t prompt_tokens = 0;
};
[[nodiscard]] Job job_of(const SeenRequest& request, const std::vector<std::string>& tokens);

// A part of an answer, and the points before and within it.
struct Piece {
  std::string bytes;
  Point before = Point::kNowhere;
  Point within = Point::kNowhere;
  bool token = false;
};

struct SimulatedAnswer {
  const Job& job;
  const Behaviour& now;
  std::string id;
  std::string model;
  std::string served_by;

  [[nodiscard]] std::string plain_body() const;
  [[nodiscard]] std::vector<Piece> plain_pieces() const;
  [[nodiscard]] std::vector<Piece> stream_pieces() const;
};

[[nodiscard]] std::string simulated_head(unsigned status, std::string_view type, std::size_t length, std::string_view extra = {});
// One chunk of the chunked coding.
[[nodiscard]] std::string simulated_chunk(const std::string& bytes);

}  // namespace moonpool::gateway::testing
