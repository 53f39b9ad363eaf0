// The one translation unit that compiles the bodies of Asio's TLS streams; all others see declarations only.
#include <boost/asio/ssl/impl/src.hpp>
