"""The ways to move bytes: pipelined SFTP over an ssh child, and lftp."""
