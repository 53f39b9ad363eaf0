#include "gateway/tls.h"

#include <openssl/err.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#include <sys/stat.h>

#include <boost/asio/error.hpp>
#include <boost/asio/ip/address.hpp>
#include <boost/asio/ssl/error.hpp>
#include <string_view>
#include <utility>

#include "base/logging.h"

namespace moonpool::gateway {

namespace {

constexpr unsigned char kProtocols[] = {8, 'h', 't', 't', 'p', '/', '1', '.', '1'};
constexpr int kExpiryWarningDays = 7;

std::string last_error() {
  const unsigned long code = ::ERR_get_error();
  ::ERR_clear_error();
  if (code == 0) return "unknown error";
  if (ERR_SYSTEM_ERROR(code)) return boost::system::error_code(ERR_GET_REASON(code), boost::system::system_category()).message();
  const char* reason = ::ERR_reason_error_string(code);
  return reason != nullptr ? reason : "error " + std::to_string(code);
}

Status cannot_use(std::string_view flag, const std::string& file, std::string_view what) {
  return Status(ErrorCode::kConfig, "cannot use " + std::string(flag) + " " + file + ": " + std::string(what));
}

int choose_protocol(SSL*, const unsigned char** chosen, unsigned char* length, const unsigned char* offered, unsigned int offered_length,
                    void*) {
  unsigned char* found = nullptr;
  if (::SSL_select_next_proto(&found, length, kProtocols, sizeof(kProtocols), offered, offered_length) != OPENSSL_NPN_NEGOTIATED) {
    return SSL_TLSEXT_ERR_ALERT_FATAL;
  }
  *chosen = found;
  return SSL_TLSEXT_ERR_OK;
}

Result<TlsContext> make_context(const SSL_METHOD* method) {
  ::ERR_clear_error();
  TlsContext context(::SSL_CTX_new(method), ::SSL_CTX_free);
  if (context == nullptr) return Status(ErrorCode::kInternal, "OpenSSL does not start: " + last_error());
  ::SSL_CTX_set_min_proto_version(context.get(), TLS1_2_VERSION);
  ::SSL_CTX_set_options(context.get(), SSL_OP_NO_COMPRESSION | SSL_OP_NO_RENEGOTIATION | SSL_OP_CIPHER_SERVER_PREFERENCE);
  return context;
}

void warn_about_expiry(SSL_CTX* context, std::string_view flag, const std::string& file) {
  const X509* certificate = ::SSL_CTX_get0_certificate(context);
  int days = 0;
  int seconds = 0;
  if (certificate == nullptr || ::ASN1_TIME_diff(&days, &seconds, nullptr, ::X509_get0_notAfter(certificate)) != 1) return;
  if (days < 0 || seconds < 0) {
    log::warning("the certificate in {} {} has expired: nobody will accept it, replace the file", flag, file);
  } else if (days < kExpiryWarningDays) {
    log::warning("the certificate in {} {} expires within {} days: replace the file in time", flag, file, days + 1);
  }
}

// `what` is "--tls" or "--upstream".
Status use_certificate(SSL_CTX* context, const std::string& what, const std::string& certificate, const std::string& key) {
  const std::string flag = what + "-cert";
  if (::SSL_CTX_use_certificate_chain_file(context, certificate.c_str()) != 1) {
    return cannot_use(flag, certificate, last_error() + ". It has to be a PEM file with the certificate first, then its chain");
  }
  const std::string& key_file = key.empty() ? certificate : key;
  const std::string key_flag = key.empty() ? flag : what + "-key";
  if (::SSL_CTX_use_PrivateKey_file(context, key_file.c_str(), SSL_FILETYPE_PEM) != 1) {
    return cannot_use(key_flag, key_file, last_error() + ". It has to be the PEM file of the private key of " + certificate);
  }
  warn_about_expiry(context, flag, certificate);
  return Status();
}

std::vector<std::string> files_of(const ServerTls& files) { return {files.certificate, files.key, files.client_ca}; }
std::vector<std::string> files_of(const UpstreamTls& files) { return {files.certificate, files.key, files.ca}; }

std::string names_of(X509* certificate) {
  std::string all;
  auto* names = static_cast<GENERAL_NAMES*>(::X509_get_ext_d2i(certificate, NID_subject_alt_name, nullptr, nullptr));
  for (int i = 0; i < sk_GENERAL_NAME_num(names) && all.size() < 200; ++i) {
    const GENERAL_NAME* name = sk_GENERAL_NAME_value(names, i);
    std::string text;
    if (name->type == GEN_DNS) {
      const std::string_view bytes(reinterpret_cast<const char*>(::ASN1_STRING_get0_data(name->d.dNSName)),
                                   static_cast<std::size_t>(::ASN1_STRING_length(name->d.dNSName)));
      for (const char c : bytes) text += c > ' ' && c < 0x7F ? c : '?';
    } else if (name->type == GEN_IPADD) {
      const unsigned char* bytes = ::ASN1_STRING_get0_data(name->d.iPAddress);
      const int length = ::ASN1_STRING_length(name->d.iPAddress);
      if (length == 4) {
        boost::asio::ip::address_v4::bytes_type address{};
        std::copy(bytes, bytes + 4, address.begin());
        text = boost::asio::ip::address_v4(address).to_string();
      } else if (length == 16) {
        boost::asio::ip::address_v6::bytes_type address{};
        std::copy(bytes, bytes + 16, address.begin());
        text = boost::asio::ip::address_v6(address).to_string();
      }
    }
    if (!text.empty()) all.append(all.empty() ? "" : ", ").append(text);
  }
  ::GENERAL_NAMES_free(names);
  return all.empty() ? "no host at all" : all;
}

// Where a session keeps the names of a certificate that was refused: OpenSSL forgets such a certificate.
int refused_names_index() {
  static const int index = ::SSL_get_ex_new_index(
      0, nullptr, nullptr, nullptr, [](void*, void* names, CRYPTO_EX_DATA*, int, long, void*) { delete static_cast<std::string*>(names); });
  return index;
}

int note_refused_names(int fine, X509_STORE_CTX* checked) {
  const int error = ::X509_STORE_CTX_get_error(checked);
  if (fine == 1 || (error != X509_V_ERR_HOSTNAME_MISMATCH && error != X509_V_ERR_IP_ADDRESS_MISMATCH)) return fine;
  auto* session = static_cast<SSL*>(::X509_STORE_CTX_get_ex_data(checked, ::SSL_get_ex_data_X509_STORE_CTX_idx()));
  X509* certificate = ::X509_STORE_CTX_get0_cert(checked);
  if (session != nullptr && certificate != nullptr && ::SSL_get_ex_data(session, refused_names_index()) == nullptr) {
    ::SSL_set_ex_data(session, refused_names_index(), std::make_unique<std::string>(names_of(certificate)).release());
  }
  return fine;
}

std::string explain_verification(SSL* session) {
  const long result = ::SSL_get_verify_result(session);
  const bool as_server = ::SSL_is_server(session) == 1;
  switch (result) {
    case X509_V_ERR_CERT_HAS_EXPIRED:
      return "its certificate has expired: it needs a new one (or the clock of this machine is wrong)";
    case X509_V_ERR_CERT_NOT_YET_VALID:
      return "its certificate is not valid yet: compare the clocks of both machines";
    case X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT:
    case X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY:
    case X509_V_ERR_UNABLE_TO_VERIFY_LEAF_SIGNATURE:
    case X509_V_ERR_SELF_SIGNED_CERT_IN_CHAIN:
    case X509_V_ERR_DEPTH_ZERO_SELF_SIGNED_CERT:
    case X509_V_ERR_CERT_UNTRUSTED:
    case X509_V_ERR_CERT_SIGNATURE_FAILURE:
      if (as_server) return "its certificate is of an issuer that is not in --tls-client-ca";
      return "its certificate is of an unknown issuer: pass the file of that CA as --upstream-ca";
    case X509_V_ERR_HOSTNAME_MISMATCH:
    case X509_V_ERR_IP_ADDRESS_MISMATCH: {
      const auto* names = static_cast<const std::string*>(::SSL_get_ex_data(session, refused_names_index()));
      return "its certificate is for " + (names == nullptr ? "other hosts" : *names) +
             ": name the instance by that host, or pass that name as --upstream-server-name";
    }
    default:
      return std::string("its certificate was not accepted: ") + ::X509_verify_cert_error_string(result);
  }
}

}  // namespace

Result<TlsContext> make_server_context(const ServerTls& files) {
  auto made = make_context(::TLS_server_method());
  if (!made.ok()) return made;
  SSL_CTX* context = made->get();
  MOONPOOL_RETURN_IF_ERROR(use_certificate(context, "--tls", files.certificate, files.key));
  ::SSL_CTX_set_alpn_select_cb(context, choose_protocol, nullptr);
  static constexpr unsigned char kName[] = {'g', 'a', 't', 'e', 'w', 'a', 'y'};
  ::SSL_CTX_set_session_id_context(context, kName, sizeof(kName));
  if (files.client_ca.empty()) return made;
  STACK_OF(X509_NAME)* names = ::SSL_load_client_CA_file(files.client_ca.c_str());
  if (names == nullptr || ::SSL_CTX_load_verify_file(context, files.client_ca.c_str()) != 1) {
    return cannot_use("--tls-client-ca", files.client_ca, last_error() + ". It has to be a PEM file of CA certificates");
  }
  ::SSL_CTX_set_client_CA_list(context, names);
  ::SSL_CTX_set_verify(context, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, nullptr);
  return made;
}

Result<TlsContext> make_upstream_context(const UpstreamTls& files) {
  auto made = make_context(::TLS_client_method());
  if (!made.ok()) return made;
  SSL_CTX* context = made->get();
  if (!files.certificate.empty()) MOONPOOL_RETURN_IF_ERROR(use_certificate(context, "--upstream", files.certificate, files.key));
  if (files.ca.empty()) {
    ::SSL_CTX_set_default_verify_paths(context);
  } else if (::SSL_CTX_load_verify_file(context, files.ca.c_str()) != 1) {
    return cannot_use("--upstream-ca", files.ca, last_error() + ". It has to be a PEM file of CA certificates");
  }
  ::SSL_CTX_set_alpn_protos(context, kProtocols, sizeof(kProtocols));
  ::SSL_CTX_set_verify(context, SSL_VERIFY_PEER, note_refused_names);
  return made;
}

Result<SSL*> make_tls_session(const TlsContext& context, const std::string& host) {
  ::ERR_clear_error();
  SSL* session = ::SSL_new(context.get());
  if (session == nullptr) return Status(ErrorCode::kInternal, "no TLS session can be made: " + last_error());
  if (host.empty()) return session;
  boost::system::error_code no_address;
  boost::asio::ip::make_address(host, no_address);
  const bool set = no_address ? ::SSL_set1_host(session, host.c_str()) == 1 && ::SSL_set_tlsext_host_name(session, host.c_str()) == 1
                              : ::X509_VERIFY_PARAM_set1_ip_asc(::SSL_get0_param(session), host.c_str()) == 1;
  if (set) return session;
  ::SSL_free(session);
  return Status(ErrorCode::kConfig, "no certificate can be for the host '" + host + "'");
}

std::string explain_tls(const boost::system::error_code& error, SSL* session) {
  const bool as_server = ::SSL_is_server(session) == 1;
  if (error == boost::asio::ssl::error::stream_truncated || error == boost::asio::error::eof) {
    if (::SSL_is_init_finished(session) == 1) return "it closed the connection";
    return "it closed the connection within the TLS handshake: does it speak TLS there?";
  }
  if (error.category() != boost::asio::error::get_ssl_category()) return error.message();
  switch (ERR_GET_REASON(static_cast<unsigned long>(static_cast<unsigned>(error.value())))) {
    case SSL_R_CERTIFICATE_VERIFY_FAILED:
      return explain_verification(session);
    case SSL_R_WRONG_VERSION_NUMBER:
    case SSL_R_HTTP_REQUEST:
    case SSL_R_PACKET_LENGTH_TOO_LONG:
      if (as_server) return "it does not speak TLS: clients of this port use https://";
      return "it does not speak TLS there: name the instance without https://, as http://host:port where --upstream-tls is set";
    case SSL_R_TLSV13_ALERT_CERTIFICATE_REQUIRED:
      return "it wants a certificate of its clients: pass one as --upstream-cert and --upstream-key";
    case SSL_R_SSLV3_ALERT_HANDSHAKE_FAILURE:
      if (as_server) return "it refused the handshake";
      return "it refused the handshake: if it wants a certificate of its clients, pass one as --upstream-cert and --upstream-key";
    case SSL_R_PEER_DID_NOT_RETURN_A_CERTIFICATE:
      return "it has shown no certificate, which --tls-client-ca asks for";
    case SSL_R_SSLV3_ALERT_BAD_CERTIFICATE:
    case SSL_R_SSLV3_ALERT_CERTIFICATE_UNKNOWN:
    case SSL_R_SSLV3_ALERT_CERTIFICATE_EXPIRED:
    case SSL_R_SSLV3_ALERT_UNSUPPORTED_CERTIFICATE:
    case SSL_R_TLSV1_ALERT_UNKNOWN_CA:
      return std::string("it does not accept our certificate (") + ::ERR_reason_error_string(static_cast<unsigned>(error.value())) +
             "): it has to trust the CA of " + (as_server ? "--tls-cert" : "--upstream-cert") + ", which has to be valid now";
    case SSL_R_UNSUPPORTED_PROTOCOL:
    case SSL_R_TLSV1_ALERT_PROTOCOL_VERSION:
      return "it speaks nothing newer than TLS 1.1, and the gateway nothing older than TLS 1.2";
    case SSL_R_NO_APPLICATION_PROTOCOL:
    case SSL_AD_REASON_OFFSET + TLS1_AD_NO_APPLICATION_PROTOCOL:  // the alert; older headers have no name for it
      return "it does not offer HTTP/1.1 by ALPN";
    default:
      return error.message();
  }
}

bool tls_holds_input(SSL* session) { return ::SSL_has_pending(session) == 1 || ::BIO_ctrl_pending(::SSL_get_rbio(session)) > 0; }

TlsKeeper::Look TlsKeeper::look(const std::vector<std::string>& files) {
  Look seen;
  for (const std::string& file : files) {
    struct ::stat now {};
    if (file.empty() || ::stat(file.c_str(), &now) != 0) now = {};
    for (const std::int64_t part :
         {static_cast<std::int64_t>(now.st_dev), static_cast<std::int64_t>(now.st_ino), static_cast<std::int64_t>(now.st_size),
          static_cast<std::int64_t>(now.st_mtim.tv_sec), static_cast<std::int64_t>(now.st_mtim.tv_nsec)}) {
      seen.push_back(part);
    }
  }
  return seen;
}

Status TlsKeeper::load(const ServerTls& server, const UpstreamTls& upstream) {
  // Looked at first: what changes while it is read is read again.
  Look server_seen = look(files_of(server));
  Look upstream_seen = look(files_of(upstream));
  TlsContext for_clients;
  if (!server.certificate.empty()) {
    auto made = make_server_context(server);
    if (!made.ok()) return made.status();
    for_clients = std::move(made).value();
  }
  auto made = make_upstream_context(upstream);
  if (!made.ok()) return made.status();
  server_files_ = server;
  upstream_files_ = upstream;
  server_seen_ = std::move(server_seen);
  upstream_seen_ = std::move(upstream_seen);
  const std::lock_guard lock(mutex_);
  server_ = std::move(for_clients);
  upstream_ = {std::move(made).value(), upstream.server_name};
  return Status();
}

void TlsKeeper::look_at_files() {
  const auto again = [&](const auto& files, Look& seen, TlsContext& target, const auto& make, const char* what) {
    Look now = look(files_of(files));
    if (now == seen) return;
    seen = std::move(now);
    auto made = make(files);
    if (!made.ok()) return log::warning("the certificates {} have changed and stay as they were: {}", what, made.status().message());
    log::info("the certificates {} were read again: new connections use them", what);
    const std::lock_guard lock(mutex_);
    target = std::move(made).value();
  };
  if (!server_files_.certificate.empty()) again(server_files_, server_seen_, server_, make_server_context, "for clients");
  again(upstream_files_, upstream_seen_, upstream_.context, make_upstream_context, "for instances");
}

TlsContext TlsKeeper::server() const {
  const std::lock_guard lock(mutex_);
  return server_;
}

TlsKeeper::Upstream TlsKeeper::upstream() const {
  const std::lock_guard lock(mutex_);
  return upstream_;
}

}  // namespace moonpool::gateway
