"""The gateway: HTTP and NATS requests in, tokens out; owns the waiting queue and places work on workers."""
