//! Tables: what Dovecot's settings become.
