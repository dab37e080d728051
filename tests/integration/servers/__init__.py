"""The middleware behind real servers: answers as without it, one right record for each request."""
