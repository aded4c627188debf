"""The safety service: shields judge texts, a policy says what follows, an audit log says what happened."""
