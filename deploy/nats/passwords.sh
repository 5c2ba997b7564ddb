#!/bin/sh
# Makes a password for each user of users.conf, as lines for a shell or an .env file:
#
#   (umask 077; deploy/nats/passwords.sh >> .env)
#
# A broker reads a password of digits alone as a number, and ends without a word: these begin with a letter. They need
# no quotes in a URL either.
set -eu
for user in $(sed -n 's/^ *password: \$\([A-Z_]*\)$/\1/p' "$(dirname "$0")/users.conf"); do
  printf '%s=p%s\n' "$user" "$(od -An -N24 -tx1 /dev/urandom | tr -d ' \n')"
done
