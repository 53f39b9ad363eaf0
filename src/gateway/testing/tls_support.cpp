#include "gateway/testing/tls_support.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <stdexcept>
#include <string_view>
#include <utility>

#include "gateway/testing/local_sockets.h"

namespace moonpool::gateway::testing {

namespace {

using Key = std::shared_ptr<EVP_PKEY>;
using Certificate = std::shared_ptr<X509>;

Key make_key() { return {EVP_EC_gen("P-256"), ::EVP_PKEY_free}; }

void add_extension(X509* certificate, X509* issuer, int nid, const std::string& value) {
  X509V3_CTX context;
  X509V3_set_ctx_nodb(&context);
  ::X509V3_set_ctx(&context, issuer, certificate, nullptr, nullptr, 0);
  X509_EXTENSION* extension = ::X509V3_EXT_conf_nid(nullptr, &context, nid, value.c_str());
  ::X509_add_ext(certificate, extension, -1);
  ::X509_EXTENSION_free(extension);
}

// Signed by `issuer`, or by itself.
Certificate make_certificate(EVP_PKEY* key, const std::string& name, X509* issuer, int hours_left) {
  static std::atomic<long> serial{1000};
  Certificate made(::X509_new(), ::X509_free);
  ::X509_set_version(made.get(), 2);
  ::ASN1_INTEGER_set(::X509_get_serialNumber(made.get()), ++serial);
  ::X509_gmtime_adj(::X509_getm_notBefore(made.get()), -48 * 3600);
  ::X509_gmtime_adj(::X509_getm_notAfter(made.get()), static_cast<long>(hours_left) * 3600);
  ::X509_set_pubkey(made.get(), key);
  X509_NAME* subject = ::X509_get_subject_name(made.get());
  ::X509_NAME_add_entry_by_txt(subject, "CN", MBSTRING_ASC, reinterpret_cast<const unsigned char*>(name.c_str()), -1, -1, 0);
  ::X509_set_issuer_name(made.get(), issuer == nullptr ? subject : ::X509_get_subject_name(issuer));
  return made;
}

template <typename Write>
void write_file(const std::string& path, const Write& write) {
  const std::string fresh = path + ".new";  // and then over the old one, as those who renew certificates do
  std::FILE* file = std::fopen(fresh.c_str(), "w");
  if (file == nullptr) throw std::runtime_error("cannot write " + fresh);
  write(file);
  std::fclose(file);
  std::rename(fresh.c_str(), path.c_str());
}

void reset_at_close(int socket) {
  const linger at_once{1, 0};
  ::setsockopt(socket, SOL_SOCKET, SO_LINGER, &at_once, sizeof(at_once));
}

}  // namespace

TestCa::TestCa(std::string folder, std::string name) : folder_(std::move(folder)), file_(folder_ + "/" + name + ".pem"), key_(make_key()) {
  certificate_ = make_certificate(key_.get(), name, nullptr, 1000);
  add_extension(certificate_.get(), certificate_.get(), NID_basic_constraints, "critical,CA:TRUE");
  ::X509_sign(certificate_.get(), key_.get(), ::EVP_sha256());
  write_file(file_, [&](std::FILE* file) { ::PEM_write_X509(file, certificate_.get()); });
}

TestCa::Pair TestCa::issue(const std::string& name, const std::string& host, int hours_left) const {
  const Key key = make_key();
  const Certificate made = make_certificate(key.get(), name, certificate_.get(), hours_left);
  in_addr address{};
  const bool is_address = ::inet_pton(AF_INET, host.c_str(), &address) == 1;
  add_extension(made.get(), certificate_.get(), NID_subject_alt_name, (is_address ? "IP:" : "DNS:") + host);
  ::X509_sign(made.get(), key_.get(), ::EVP_sha256());
  Pair files{folder_ + "/" + name + "-cert.pem", folder_ + "/" + name + "-key.pem"};
  write_file(files.key, [&](std::FILE* file) { ::PEM_write_PrivateKey(file, key.get(), nullptr, nullptr, 0, nullptr, nullptr); });
  write_file(files.certificate, [&](std::FILE* file) { ::PEM_write_X509(file, made.get()); });
  return files;
}

TlsTunnel::TlsTunnel(Options options) : options_(std::move(options)) {
  std::signal(SIGPIPE, SIG_IGN);  // OpenSSL writes without MSG_NOSIGNAL
  const bool server = options_.side == Side::kAccepting;
  context_ = {::SSL_CTX_new(server ? ::TLS_server_method() : ::TLS_client_method()), ::SSL_CTX_free};
  if (!options_.own.certificate.empty()) {
    ::SSL_CTX_use_certificate_chain_file(context_.get(), options_.own.certificate.c_str());
    ::SSL_CTX_use_PrivateKey_file(context_.get(), options_.own.key.c_str(), SSL_FILETYPE_PEM);
  }
  if (!options_.ca.empty()) {
    ::SSL_CTX_load_verify_file(context_.get(), options_.ca.c_str());
    ::SSL_CTX_set_verify(context_.get(), SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, nullptr);
  }
  static constexpr unsigned char kProtocols[] = {2, 'h', '2', 8, 'h', 't', 't', 'p', '/', '1', '.', '1'};
  if (!server) ::SSL_CTX_set_alpn_protos(context_.get(), kProtocols, sizeof(kProtocols));
  listener_ = listen_locally(port_);
  acceptor_ = std::thread([this] { accept_loop(); });
}

TlsTunnel::~TlsTunnel() {
  stopping_ = true;
  ::shutdown(listener_, SHUT_RDWR);
  acceptor_.join();
  ::close(listener_);
  std::vector<std::thread> threads;
  {
    const std::lock_guard lock(mutex_);
    threads.swap(threads_);
  }
  for (auto& thread : threads) thread.join();
}

void TlsTunnel::accept_loop() {
  for (;;) {
    const int accepted = ::accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC);
    if (accepted < 0) return;
    const std::lock_guard lock(mutex_);
    threads_.emplace_back([this, accepted] { serve(accepted); });
  }
}

void TlsTunnel::serve(int accepted) {
  const int connected = connect_locally(options_.target);
  const int yes = 1;
  for (const int socket : {accepted, connected}) ::setsockopt(socket, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof(yes));
  const bool server = options_.side == Side::kAccepting;
  const int secure = server ? accepted : connected;
  const int plain = server ? connected : accepted;
  // A handshake that is never answered must not hold up the test's end.
  const timeval patience{5, 0};
  ::setsockopt(secure, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
  SSL* session = ::SSL_new(context_.get());
  ::SSL_set_fd(session, secure);
  if (!server) ::SSL_set_tlsext_host_name(session, "localhost");
  if ((server ? ::SSL_accept(session) : ::SSL_connect(session)) == 1) {
    const unsigned char* protocol = nullptr;
    unsigned length = 0;
    ::SSL_get0_alpn_selected(session, &protocol, &length);
    X509* shown = ::SSL_get1_peer_certificate(session);
    {
      const std::lock_guard lock(mutex_);
      if (shown != nullptr) serial_ = std::to_string(::ASN1_INTEGER_get(::X509_get0_serialNumber(shown)));
      protocol_.assign(reinterpret_cast<const char*>(protocol), length);
    }
    ::X509_free(shown);
    ++secured_;
    pass(plain, secure, session);
  }
  ::ERR_clear_error();
  ::SSL_free(session);
  ::close(secure);
  ::close(plain);
}

void TlsTunnel::pass(int plain, int secure, void* opaque) {
  auto* session = static_cast<SSL*>(opaque);
  ::fcntl(secure, F_SETFL, ::fcntl(secure, F_GETFL) | O_NONBLOCK);
  char buffer[16 * 1024];
  while (!stopping_) {
    // What lies ready behind TLS first: poll() does not see it.
    const int read = ::SSL_read(session, buffer, sizeof(buffer));
    if (read > 0) {
      if (!send_all(plain, {buffer, static_cast<std::size_t>(read)})) return;
      continue;
    }
    const int error = ::SSL_get_error(session, read);
    if (error == SSL_ERROR_ZERO_RETURN) ++notified_;
    if (error != SSL_ERROR_WANT_READ) return;  // closed, well or badly: the plain side sees it too
    pollfd waiting[] = {{plain, POLLIN, 0}, {secure, POLLIN, 0}};
    if (::poll(waiting, 2, 50) <= 0 || waiting[0].revents == 0) continue;
    const ssize_t count = ::recv(plain, buffer, sizeof(buffer), 0);
    if (count <= 0) {
      if (options_.ending == Ending::kCloseNotify) ::SSL_shutdown(session);
      if (options_.ending == Ending::kReset) reset_at_close(secure);
      return;
    }
    std::size_t written = 0;
    while (!stopping_ && ::SSL_write_ex(session, buffer, static_cast<std::size_t>(count), &written) != 1) {
      pollfd room{secure, POLLOUT, 0};
      if (::SSL_get_error(session, 0) != SSL_ERROR_WANT_WRITE) return;
      ::poll(&room, 1, 50);
    }
  }
}

std::string TlsTunnel::last_serial() const {
  const std::lock_guard lock(mutex_);
  return serial_;
}

std::string TlsTunnel::last_protocol() const {
  const std::lock_guard lock(mutex_);
  return protocol_;
}

}  // namespace moonpool::gateway::testing
