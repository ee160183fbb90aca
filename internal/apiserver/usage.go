package apiserver

import "skiff/internal/cache"

// CacheUsage is what the server's cache holds.
func (s *Server) CacheUsage() cache.Usage { return s.cache.Usage() }
