#include "net/handshake.h"

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <sys/random.h>

#include <algorithm>
#include <cerrno>
#include <string_view>
#include <utility>

#include "net/handshake_steps.h"
#include "wire.pb.h"

namespace moonpool::net {
namespace {

constexpr std::size_t kNonceSize = 32;
constexpr std::size_t kProofSize = 32;
constexpr std::string_view kServerLabel = "moonpool server";
constexpr std::string_view kClientLabel = "moonpool client";

// Empty when the kernel has no entropy to give, which callers treat as a failed handshake.
std::string make_nonce() {
  std::string nonce(kNonceSize, '\0');
  for (std::size_t filled = 0; filled < nonce.size();) {
    const ssize_t got = ::getrandom(nonce.data() + filled, nonce.size() - filled, 0);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return {};
    filled += static_cast<std::size_t>(got);
  }
  return nonce;
}

// Empty on a failure inside OpenSSL; an empty proof never matches.
std::string make_proof(const std::string& token, std::string_view label, const std::string& client_nonce, const std::string& server_nonce) {
  const std::string text = std::string(label) + client_nonce + server_nonce;
  std::string proof(EVP_MAX_MD_SIZE, '\0');
  unsigned size = 0;
  if (::HMAC(::EVP_sha256(), token.data(), static_cast<int>(token.size()), reinterpret_cast<const unsigned char*>(text.data()), text.size(),
             reinterpret_cast<unsigned char*>(proof.data()), &size) == nullptr) {
    return {};
  }
  proof.resize(size);
  return proof;
}

bool same_proof(const std::string& a, const std::string& b) {
  return a.size() == kProofSize && b.size() == kProofSize && ::CRYPTO_memcmp(a.data(), b.data(), kProofSize) == 0;
}

bool parse_into(google::protobuf::MessageLite& message, std::span<const std::byte> bytes) {
  return message.ParseFromArray(bytes.data(), static_cast<int>(bytes.size()));
}

std::string hello_frame(const google::protobuf::MessageLite& message) {
  FrameHeader header;
  header.kind = FrameKind::kHello;
  return make_frame(header, message.SerializeAsString());
}

std::string versions_text(std::uint32_t min, std::uint32_t max) {
  return min == max ? "version " + std::to_string(max) : "versions " + std::to_string(min) + " to " + std::to_string(max);
}

}  // namespace

std::string make_frame(FrameHeader header, const std::string& message) {
  header.message_length = static_cast<std::uint32_t>(message.size());
  const FrameBytes bytes = encode(header);
  std::string frame(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  return frame += message;
}

std::string make_error_message(const Status& status) {
  wire::ErrorMessage error;
  error.set_code(status.number());
  error.set_text(status.message());
  return error.SerializeAsString();
}

Status status_of_error_frame(std::span<const std::byte> message) {
  wire::ErrorMessage error;
  if (!parse_into(error, message)) return Status(ErrorCode::kProtocol, "the peer sent an error that does not parse");
  if (error.code() == 0) return Status(ErrorCode::kInternal, "the peer sent an error without a code: " + error.text());
  return Status(static_cast<ErrorCode>(error.code()), error.text());
}

// ------------------------------------------------------------------------------------------------ client

ClientHandshake::ClientHandshake(const Identity& self, std::string peer) : self_(self), peer_(std::move(peer)), nonce_(make_nonce()) {}

std::string ClientHandshake::hello() const {
  wire::Hello hello;
  hello.set_min_version(kWireVersion);
  hello.set_max_version(kWireVersion);
  hello.set_features(kOfferedFeatures);
  hello.set_node_id(self_.node_id.to_bytes());
  hello.set_nonce(nonce_);
  hello.set_product(self_.product);
  hello.set_has_token(!self_.token.empty());
  return hello_frame(hello);
}

Result<std::string> ClientHandshake::on_frame(const FrameHeader& header, std::span<const std::byte> message) {
  if (header.kind == FrameKind::kError) return status_of_error_frame(message);
  if (state_ == State::kAwaitingReply && header.kind == FrameKind::kHello) return on_reply(message);
  if (state_ == State::kAwaitingVerdict && header.kind == FrameKind::kResponse) {
    state_ = State::kDone;
    return std::string();
  }
  return Status(ErrorCode::kProtocol, peer_ + " sent a frame out of turn in the handshake: is it a Moonpool server?");
}

Result<std::string> ClientHandshake::on_reply(std::span<const std::byte> message) {
  wire::HelloReply reply;
  if (!parse_into(reply, message)) return Status(ErrorCode::kProtocol, peer_ + " sent a handshake that does not parse");
  peer_product_ = reply.product();
  if (reply.version() != kWireVersion) {
    return Status(ErrorCode::kProtocol, peer_ + " (" + reply.product() + ") chose wire version " + std::to_string(reply.version()) +
                                            ", and this process speaks version " + std::to_string(kWireVersion) +
                                            ": upgrade the older side");
  }
  const auto node = NodeId::from_bytes(reply.node_id());
  if (!node || reply.nonce().size() != kNonceSize || nonce_.empty()) {
    return Status(ErrorCode::kProtocol, peer_ + " sent a handshake with a malformed node id or nonce");
  }
  peer_node_ = *node;
  features_ = reply.features() & kOfferedFeatures;
  if (reply.proof().empty() != self_.token.empty()) {
    return Status(ErrorCode::kUnauthenticated,
                  self_.token.empty() ? peer_ + " asks for a cluster token, and this process has none: configure the cluster's token here"
                                      : peer_ +
                                            " does not ask for the token that you configured: configure the same cluster token there, "
                                            "or remove it here");
  }
  if (self_.token.empty()) {
    state_ = State::kDone;
    return std::string();
  }
  if (!same_proof(make_proof(self_.token, kServerLabel, nonce_, reply.nonce()), reply.proof())) {
    return Status(ErrorCode::kUnauthenticated,
                  peer_ + " does not know this process's cluster token: configure the same token on both sides");
  }
  wire::Prove prove;
  prove.set_proof(make_proof(self_.token, kClientLabel, nonce_, reply.nonce()));
  state_ = State::kAwaitingVerdict;
  return hello_frame(prove);
}

// ------------------------------------------------------------------------------------------------ server

namespace {
ServerHandshake::Answer refuse(ErrorCode code, std::string text) {
  Status status(code, std::move(text));
  FrameHeader header;
  header.kind = FrameKind::kError;
  std::string frame = make_frame(header, make_error_message(status));
  return {std::move(frame), std::move(status)};
}
}  // namespace

ServerHandshake::ServerHandshake(const Identity& self) : self_(self), server_nonce_(make_nonce()) {}

ServerHandshake::Answer ServerHandshake::on_frame(const FrameHeader& header, std::span<const std::byte> message) {
  if (header.kind != FrameKind::kHello) return refuse(ErrorCode::kProtocol, "the handshake has to come before any other frame");
  if (state_ == State::kAwaitingHello) return on_hello(message);
  if (state_ == State::kAwaitingProof) return on_proof(message);
  return refuse(ErrorCode::kProtocol, "the handshake is over");
}

ServerHandshake::Answer ServerHandshake::on_hello(std::span<const std::byte> message) {
  wire::Hello hello;
  if (!parse_into(hello, message)) return refuse(ErrorCode::kProtocol, "the handshake's first message does not parse");
  if (hello.min_version() > kWireVersion || hello.max_version() < kWireVersion) {
    return refuse(ErrorCode::kProtocol, "no wire version in common: the client (" + hello.product().substr(0, 64) + ") speaks " +
                                            versions_text(hello.min_version(), hello.max_version()) + ", this server (" + self_.product +
                                            ") " + versions_text(kWireVersion, kWireVersion) + ": upgrade the older side");
  }
  const auto node = NodeId::from_bytes(hello.node_id());
  if (!node || hello.nonce().size() != kNonceSize) return refuse(ErrorCode::kProtocol, "the handshake has a malformed node id or nonce");
  if (server_nonce_.empty()) return refuse(ErrorCode::kInternal, "the server has no entropy for a handshake: try again");
  if (!self_.token.empty() && !hello.has_token()) {
    return refuse(ErrorCode::kUnauthenticated,
                  "this server asks for a cluster token, and the client has none: configure the cluster's token there");
  }
  peer_node_ = *node;
  client_nonce_ = hello.nonce();
  wire::HelloReply reply;
  reply.set_version(kWireVersion);
  reply.set_features(hello.features() & kOfferedFeatures);
  reply.set_nonce(server_nonce_);
  reply.set_product(self_.product);
  reply.set_node_id(self_.node_id.to_bytes());
  if (!self_.token.empty()) reply.set_proof(make_proof(self_.token, kServerLabel, client_nonce_, server_nonce_));
  state_ = self_.token.empty() ? State::kDone : State::kAwaitingProof;
  return {hello_frame(reply), Status()};
}

ServerHandshake::Answer ServerHandshake::on_proof(std::span<const std::byte> message) {
  wire::Prove prove;
  if (!parse_into(prove, message)) return refuse(ErrorCode::kProtocol, "the handshake's proof does not parse");
  if (!same_proof(make_proof(self_.token, kClientLabel, client_nonce_, server_nonce_), prove.proof())) {
    return refuse(ErrorCode::kUnauthenticated, "the cluster token differs from the server's: configure the same token on both sides");
  }
  state_ = State::kDone;
  FrameHeader header;
  header.kind = FrameKind::kResponse;
  return {make_frame(header, {}), Status()};
}

}  // namespace moonpool::net
